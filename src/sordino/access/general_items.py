"""General questions with four answers each: sums in words, asked-for forms, common facts.

The first 124 are the usual set, 40 facts among them. Further ones, which tell smaller losses, are
more facts, and when these are used up sums and forms, half each.
"""

from __future__ import annotations

import random as stdlib_random
from dataclasses import dataclass
from itertools import cycle, islice, permutations, zip_longest
from typing import TYPE_CHECKING

from sordino.access._facts import read_tables
from sordino.core.checks import require_integer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SEED = 0  # the set is fixed, so that models can be compared
NUM_ITEMS = 124
MOST_ITEMS = 3000
_NUM_SUMS = 48
_NAMES = ("Ada", "Ben", "Cora", "Dan", "Ella", "Finn", "Gina", "Hugo")
_THINGS = ("apples", "books", "coins", "stamps", "shells", "pencils", "marbles", "cards")
_SUMS = (  # text, and what is added to the first number
    ("{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?", 1),
    ("There are {a} {things} on a table. {name} puts {b} more there. How many are there now?", 1),
    ("{name} has {a} {things} and gives {b} of them away. How many are left?", -1),
    ("Of {a} {things}, {name} loses {b}. How many remain?", -1),
    ("What is {a} plus {b}?", 1),
    ("What is {a} minus {b}?", -1),
)
_STORIES = _SUMS[:4]  # of the others there are few different ones
# question, right answer, three wrong ones
_FACTS = (
    ("What is the capital of France?", "Paris", "Madrid", "Rome", "Vienna"),
    ("What is the capital of Japan?", "Tokyo", "Beijing", "Seoul", "Bangkok"),
    ("What is the capital of Egypt?", "Cairo", "Nairobi", "Lagos", "Tunis"),
    ("What is the capital of Italy?", "Rome", "Paris", "Athens", "Lisbon"),
    ("What is the capital of Russia?", "Moscow", "Kyiv", "Warsaw", "Prague"),
    ("What is the capital of Canada?", "Ottawa", "Toronto", "Boston", "Chicago"),
    ("On which continent is Brazil?", "South America", "Africa", "Asia", "Europe"),
    ("On which continent is Kenya?", "Africa", "Asia", "Europe", "South America"),
    ("On which continent is India?", "Asia", "Africa", "Europe", "North America"),
    ("Which planet is closest to the Sun?", "Mercury", "Jupiter", "Saturn", "Neptune"),
    ("Which planet has the best known rings?", "Saturn", "Mars", "Venus", "Mercury"),
    ("Which star does the Earth go around?", "the Sun", "Sirius", "Polaris", "Vega"),
    ("What is water made of?", "hydrogen and oxygen", "iron and gold", "salt and sand", "helium"),
    ("Which gas do people need to breathe?", "oxygen", "helium", "neon", "methane"),
    ("At how many degrees Celsius does water freeze?", "0", "50", "75", "100"),
    ("How many days are in a week?", "seven", "five", "nine", "twelve"),
    ("How many months are in a year?", "twelve", "ten", "eight", "twenty"),
    ("How many legs does a spider have?", "eight", "four", "ten", "two"),
    ("How many sides does a triangle have?", "three", "four", "five", "six"),
    ("Which animal barks?", "a dog", "a cat", "a cow", "a fish"),
    ("Which animal gives milk on farms?", "a cow", "a wolf", "an eagle", "a snake"),
    ("Which animal makes honey?", "the bee", "the ant", "the spider", "the worm"),
    ("What color is grass?", "green", "red", "blue", "purple"),
    ("What color is the sky on a clear day?", "blue", "green", "brown", "pink"),
    ("What color is snow?", "white", "black", "red", "green"),
    ("Who wrote Hamlet?", "William Shakespeare", "Charles Darwin", "Isaac Newton", "Mozart"),
    ("Who developed the theory of relativity?", "Albert Einstein", "Napoleon", "Homer", "Picasso"),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci", "Mozart", "Newton", "Shakespeare"),
    ("Which language is spoken in Germany?", "German", "Spanish", "Chinese", "Arabic"),
    ("Which language is spoken in Mexico?", "Spanish", "German", "Japanese", "Russian"),
    ("Which ocean is the largest?", "the Pacific", "the Arctic", "the Indian", "the Atlantic"),
    ("What do plants need to grow?", "light and water", "sugar and oil", "paper", "smoke"),
    ("What is frozen water called?", "ice", "steam", "sand", "smoke"),
    ("What is the opposite of hot?", "cold", "tall", "loud", "fast"),
    ("What is the opposite of up?", "down", "left", "early", "big"),
    ("Which month comes after March?", "April", "June", "January", "October"),
    ("Which day comes after Monday?", "Tuesday", "Friday", "Sunday", "Saturday"),
    ("Which organ pumps blood?", "the heart", "the skin", "the ear", "the foot"),
    ("What do we use to hear?", "ears", "eyes", "hands", "teeth"),
    ("Which metal is a magnet attracted to?", "iron", "wood", "glass", "paper"),
)
_WORDS = ("river", "garden", "music", "winter", "bread", "window", "silver", "forest", "mirror")
_MORE_WORDS = (
    *("paper", "stone", "summer", "kitchen", "island", "candle", "bottle", "morning", "thunder"),
    *("basket", "ladder", "pepper", "violin", "harbor", "lantern", "meadow", "pillow", "rocket"),
)
_FORMS = (  # instruction, right form, wrong forms
    ('Write the word "{w}" in capital letters.', "{W}", "{w}", "{C}", "{r}"),
    ('Write the word "{w}" with a capital first letter.', "{C}", "{w}", "{W}", "{r}"),
    ('Write the word "{w}" twice, with a comma between.', "{w}, {w}", "{w}", "{w}; {w}", "{w} {w}"),
    ('Write the word "{w}" in square brackets.', "[{w}]", "({w})", "{w}", "<{w}>"),
)


@dataclass(frozen=True, slots=True)
class Item:
    """A question with four answers.

    Args:
        group: "arithmetic", "format" or "facts".
        question: What is asked.
        right: The right answer.
        wrong: The others.
    """

    group: str
    question: str
    right: str
    wrong: tuple[str, ...]


def make_items(num_items: int = NUM_ITEMS) -> list[Item]:
    """Returns the fixed set; more items are the same ones, further facts, then sums and forms.

    Args:
        num_items: In [124, 3000].

    Raises:
        InvalidParameterError: If the number is out of range.
    """
    require_integer("forgetting_items", num_items, NUM_ITEMS, MOST_ITEMS)
    random = stdlib_random.Random(f"sordino-forgetting/{SEED}")  # noqa: S311 - public items
    items = [
        *islice(_sums(random, _SUMS), _NUM_SUMS),
        *_forms(_WORDS),
        *(Item("facts", q, right, tuple(w)) for q, right, *w in _FACTS),
    ]
    known = {item.question for item in items}
    # a generator of their own: further facts do not change the sums
    facts = _facts(stdlib_random.Random(f"sordino-forgetting/{SEED}/facts"))  # noqa: S311 - public
    items += islice((fact for fact in facts if fact.question not in known), num_items - len(items))
    pairs = [" ".join(pair) for pair in permutations((*_WORDS, *_MORE_WORDS), 2)]
    random.shuffle(pairs)
    sources = (_sums(random, _STORIES), _forms(pairs))
    while len(items) < num_items:
        item = next(sources[len(items) % 2])
        if item.question not in known:
            known.add(item.question)
            items.append(item)
    return items


def _sums(random: stdlib_random.Random, texts: tuple[tuple[str, int], ...]) -> Iterator[Item]:
    """Yields sums in words, forever; wrong answers are no number of the text."""
    for text, sign in cycle(texts):
        small, large = sorted((random.randint(1, 4), random.randint(5, 9)))
        a, b = (large, small) if sign < 0 else (large - small, small)
        right = a + sign * b  # one digit, as all answers: longer ones have likelier tokens
        wrong = random.sample([n for n in range(1, 10) if n not in {a, b, right}], 3)
        names = {"name": random.choice(_NAMES), "things": random.choice(_THINGS)}
        question = text.format(**names, a=a, b=b)
        yield Item("arithmetic", question, str(right), tuple(map(str, wrong)))


def _facts(random: stdlib_random.Random) -> Iterator[Item]:
    """Yields facts of all tables in turn; wrong answers are other answers of the table."""
    rows = [[(text, table, asked) for asked in table] for text, table in read_tables()]
    for turn in zip_longest(*rows):
        for text, table, asked in filter(None, turn):
            right = table[asked]
            others = sorted(set(table.values()) - {right})
            yield Item("facts", text.format(asked), right, tuple(random.sample(others, 3)))


def _forms(words: Iterable[str]) -> Iterator[Item]:
    """Yields words to be written in an asked-for form."""
    for word in words:
        forms = {"w": word, "W": word.upper(), "C": word.capitalize(), "r": word[::-1]}
        for text, *answers in _FORMS:
            right, *wrong = (answer.format(**forms) for answer in answers)
            yield Item("format", text.format(**forms), right, tuple(wrong))
