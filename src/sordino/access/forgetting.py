"""What a model can still do after tuning: a small fixed set of general questions.

Sums in words, answers in an asked-for form, and common facts, each with four answers of which the
model must find the right one likeliest (mean log-likelihood of its tokens). Chance is a quarter.
The set is small: it shows a collapse, not a loss of a point.
"""

from __future__ import annotations

import random as stdlib_random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sordino.access.results import Rate, compute_rate, mcnemar_exact
from sordino.auditing.clopper_pearson import binomial_lower, binomial_upper
from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidParameterError
from sordino.data._tokens import start_tokens, tokenize
from sordino.data.collate import plan_batches
from sordino.data.tasks import Example
from sordino.gradients.objectives import CompletionObjective, LanguageModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sordino.models import LoadedModel

SEED = 0  # the set is fixed, so that models can be compared
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
_WORKED = (
    "Question: Ed has 2 hats and gets 3 more. How many hats does Ed have now?\nAnswer: 5\n\n"
    "Question: What is 9 minus 2?\nAnswer: 7\n\n"
)
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


@dataclass(frozen=True, slots=True)
class Forgetting:
    """How much a model lost, on the same items before and after.

    Args:
        before: Items answered rightly before, with an interval.
        after: The same after.
        groups: Right before and after, and items, by group.
        lost_points: Percentage points lost; negative for a gain.
        lower: Lower end of the loss in points.
        upper: Upper end.
        p_value: Of the hypothesis that loss and gain are equally likely (McNemar, exact).
    """

    before: Rate
    after: Rate
    groups: dict[str, tuple[int, int, int]]
    lost_points: float
    lower: float
    upper: float
    p_value: float


def make_items() -> list[Item]:
    """Returns the fixed set."""
    random = stdlib_random.Random(f"sordino-forgetting/{SEED}")  # noqa: S311 - public items
    return [
        *_sums(random),
        *_forms(),
        *(Item("facts", q, right, tuple(w)) for q, right, *w in _FACTS),
    ]


def answer_items(
    loaded_model: LoadedModel, items: Sequence[Item], *, tokens_per_batch: int = 2048
) -> list[bool]:
    """Returns which items a model answers rightly: the right answer is the likeliest, alone.

    Args:
        loaded_model: The model with its tokenizer; adapters may be inside it.
        items: From `make_items`.
        tokens_per_batch: Bounds the memory.
    """
    require_integer("tokens_per_batch", tokens_per_batch, 1)
    tokenizer = loaded_model.tokenizer
    examples = []
    for item in items:
        opening, space = _opening(item, tokenizer)
        answers = tokenize(tokenizer, [f"{space}{text}" for text in (item.right, *item.wrong)])
        examples += [Example(opening + ids, num_prompt_tokens=len(opening)) for ids in answers]
    model = LanguageModel(loaded_model.model, tokenizer.pad_token_id)
    objective = CompletionObjective(examples)
    losses = torch.empty(len(examples))
    with torch.no_grad():
        for batch in plan_batches(objective.lengths, token_budget=tokens_per_batch, max_records=64):
            losses[batch] = objective.losses(model, batch).float().cpu()
    right, outcomes = 0, []
    for item in items:
        others = losses[right + 1 : right + 1 + len(item.wrong)]
        outcomes.append(bool(losses[right] < others.min()))  # False where a loss is NaN
        right += 1 + len(item.wrong)
    return outcomes


def compare_items(
    items: Sequence[Item],
    before: Sequence[bool],
    after: Sequence[bool],
    *,
    significance: float = 0.05,
) -> Forgetting:
    """Returns what was lost, with an interval.

    The interval is exact and wide: losses and gains have an interval of Clopper and Pearson each,
    at half the significance, and their ends are subtracted.

    Args:
        items: The set.
        before: Which were answered rightly before.
        after: Which were answered rightly after.
        significance: One minus the confidence of each interval; in (0, 1).

    Raises:
        InvalidParameterError: If the lengths differ, or the significance is out of range.
    """
    if not items or not len(items) == len(before) == len(after):
        raise InvalidParameterError(
            "every item must be answered before and after, got "
            f"{len(items)}, {len(before)} and {len(after)}."
        )
    require_in_range("significance", significance, 0.0, 1.0)
    total, quarter = len(items), significance / 4.0  # two intervals, two sides each
    pairs = list(zip(before, after, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    lower = binomial_lower(lost, total, quarter) - binomial_upper(gained, total, quarter)
    upper = binomial_upper(lost, total, quarter) - binomial_lower(gained, total, quarter)
    groups: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for item, pair in zip(items, pairs, strict=True):
        groups[item.group].append(pair)
    return Forgetting(
        before=compute_rate(sum(before), total, significance=significance),
        after=compute_rate(sum(after), total, significance=significance),
        groups={
            name: (sum(b for b, _ in found), sum(a for _, a in found), len(found))
            for name, found in groups.items()
        },
        lost_points=100.0 * (lost - gained) / total,
        lower=100.0 * lower,
        upper=100.0 * upper,
        p_value=mcnemar_exact(lost, gained),
    )


def _sums(random: stdlib_random.Random) -> Iterator[Item]:
    """Yields sums in words; wrong answers are no number of the text."""
    for number in range(_NUM_SUMS):
        text, sign = _SUMS[number % len(_SUMS)]
        small, large = sorted((random.randint(1, 4), random.randint(5, 9)))
        a, b = (large, small) if sign < 0 else (large - small, small)
        right = a + sign * b  # one digit, as all answers: longer ones have likelier tokens
        wrong = random.sample([n for n in range(1, 10) if n not in {a, b, right}], 3)
        names = {"name": random.choice(_NAMES), "things": random.choice(_THINGS)}
        question = text.format(**names, a=a, b=b)
        yield Item("arithmetic", question, str(right), tuple(map(str, wrong)))


def _forms() -> Iterator[Item]:
    """Yields words to be written in an asked-for form."""
    for word in _WORDS:
        forms = {"w": word, "W": word.upper(), "C": word.capitalize(), "r": word[::-1]}
        for text, *answers in _FORMS:
            right, *wrong = (answer.format(**forms) for answer in answers)
            yield Item("format", text.format(**forms), right, tuple(wrong))


def _opening(item: Item, tokenizer: Any) -> tuple[list[int], str]:
    """Returns the tokens of a question, and what stands between it and an answer.

    By the chat template, if there is one; sums are plain text after two worked ones, without which
    small chat models do worse than chance.
    """
    is_sum = item.group == "arithmetic"
    if is_sum or not getattr(tokenizer, "chat_template", None):
        text = f"{_WORKED if is_sum else ''}Question: {item.question}\nAnswer:"
        return start_tokens(tokenizer) + tokenize(tokenizer, [text])[0], " "
    messages = [{"role": "user", "content": item.question}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return tokenize(tokenizer, [text])[0], "" if text[-1].isspace() else " "
