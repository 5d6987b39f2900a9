"""`python -m sordino`, also for `accelerate launch -m sordino`."""

from sordino.cli import main

if __name__ == "__main__":
    main()
