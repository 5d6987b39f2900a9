"""Training: the loop, its recovery, and the check of what it leaves behind."""
