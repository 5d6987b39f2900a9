"""What a model can still do after tuning: general questions, with four answers each.

The model must find the right one likeliest (mean log-likelihood of its tokens). Chance is a
quarter; what was at chance before cannot be lost, so losses are told apart for what was above it.
The usual set is small: it shows a collapse, not a loss of a point. If a twentieth of the items is
lost and as many are gained, 2,500 items tell a loss of two points from none.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sordino.access.prompts import apply_template
from sordino.access.results import Rate, compute_rate, mcnemar_exact
from sordino.auditing.clopper_pearson import binomial_lower, binomial_upper
from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidParameterError
from sordino.data._tokens import start_tokens, tokenize
from sordino.data.collate import plan_batches
from sordino.data.tasks import Example
from sordino.gradients.objectives import CompletionObjective, LanguageModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.access.general_items import Item
    from sordino.models import LoadedModel

_CHANCE = 0.25
_WORKED = (
    "Question: Ed has 2 hats and gets 3 more. How many hats does Ed have now?\nAnswer: 5\n\n"
    "Question: What is 9 minus 2?\nAnswer: 7\n\n"
)


@dataclass(frozen=True, slots=True)
class Forgetting:
    """How much a model lost, on the same items before and after.

    Args:
        before: Items answered rightly before, with an interval.
        after: The same after.
        groups: Right before and after, and items, by group.
        known: The loss in points, with the ends of its interval, of each group that was answered
            above chance before (one-sided, at the significance): the others cannot show a loss.
        lost_points: Percentage points lost; negative for a gain.
        lower: Lower end of the loss in points.
        upper: Upper end.
        p_value: Of the hypothesis that loss and gain are equally likely (McNemar, exact).
    """

    before: Rate
    after: Rate
    groups: dict[str, tuple[int, int, int]]
    known: dict[str, tuple[float, float, float]]
    lost_points: float
    lower: float
    upper: float
    p_value: float


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
    pairs = list(zip(before, after, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    groups: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for item, pair in zip(items, pairs, strict=True):
        groups[item.group].append(pair)
    known = {
        name: _loss(found, significance)
        for name, found in groups.items()
        if binomial_lower(sum(b for b, _ in found), len(found), significance) > _CHANCE
    }
    points, lower, upper = _loss(pairs, significance)
    return Forgetting(
        before=compute_rate(sum(before), len(items), significance=significance),
        after=compute_rate(sum(after), len(items), significance=significance),
        groups={
            name: (sum(b for b, _ in found), sum(a for _, a in found), len(found))
            for name, found in groups.items()
        },
        known=known,
        lost_points=points,
        lower=lower,
        upper=upper,
        p_value=mcnemar_exact(lost, gained),
    )


def _loss(pairs: Sequence[tuple[bool, bool]], significance: float) -> tuple[float, float, float]:
    """Returns the loss in percentage points and the ends of its interval."""
    total, quarter = len(pairs), significance / 4.0  # two intervals, two sides each
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    lower = binomial_lower(lost, total, quarter) - binomial_upper(gained, total, quarter)
    upper = binomial_upper(lost, total, quarter) - binomial_lower(gained, total, quarter)
    return 100.0 * (lost - gained) / total, 100.0 * lower, 100.0 * upper


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
    text = apply_template(tokenizer, messages)
    return tokenize(tokenizer, [text])[0], "" if text[-1].isspace() else " "
