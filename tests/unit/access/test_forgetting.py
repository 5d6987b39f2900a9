"""The fixed set of general questions, and how a loss is told."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch

from helpers_tiny_models import make_model
from sordino.access.forgetting import answer_items, compare_items
from sordino.access.general_items import MOST_ITEMS, NUM_ITEMS, Item, make_items
from sordino.core.errors import InvalidParameterError
from sordino.models import LoadedModel


def test_the_set_is_fixed_and_fair() -> None:
    """Four different answers each, the right ones right, and no question twice."""
    items = make_items()
    assert items == make_items()
    assert Counter(item.group for item in items) == {"arithmetic": 48, "format": 36, "facts": 40}
    for item in items:
        assert len({item.right, *item.wrong}) == 4
    for item in (item for item in items if item.group == "arithmetic"):
        a, b = map(int, re.findall(r"\d+", item.question))
        is_less = re.search(r"gives .* away|loses|minus", item.question)
        assert int(item.right) == (a - b if is_less else a + b)
        assert not {str(a), str(b)} & {*item.wrong}
        assert all(len(answer) == 1 for answer in (item.right, *item.wrong))


def test_more_items_are_the_same_and_others() -> None:
    """No question twice, and the usual ones first: runs with other numbers share them."""
    items = make_items(MOST_ITEMS)
    assert items[:NUM_ITEMS] == make_items()
    assert make_items(500) == items[:500]
    assert len({item.question for item in items[NUM_ITEMS:]}) == MOST_ITEMS - NUM_ITEMS
    further = Counter(item.group for item in items[NUM_ITEMS:])
    assert abs(further["arithmetic"] - further["format"]) <= 1
    assert further["facts"] > 150
    assert {item.group for item in items[NUM_ITEMS : NUM_ITEMS + 150]} == {"facts"}
    for item in items:
        assert len({item.right, *item.wrong}) == 4
    for wrong in (NUM_ITEMS - 1, MOST_ITEMS + 1):
        with pytest.raises(InvalidParameterError, match="forgetting_items"):
            make_items(wrong)


class _Tokenizer:
    """Letters as tokens; what the items are asked with is kept."""

    pad_token_id = 0
    bos_token_id = None
    chat_template = None

    def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": self._ids(texts)}
        return {"input_ids": [self._ids(text) for text in texts]}

    @staticmethod
    def _ids(text: str) -> list[int]:
        return [1 + ord(sign) % 39 for sign in text]


def test_the_likeliest_answer_counts() -> None:
    """By mean log-likelihood of its tokens, one by one and in any batches."""
    model, tokenizer = make_model("llama", max_position_embeddings=256), _Tokenizer()
    loaded = LoadedModel(model, tokenizer, "tiny", "0")
    items = [Item("facts", "x?", "yes", ("no", "maybe", "u")), Item("facts", "y?", "a", ("b",))]
    items += [Item("facts", f"{n}?", "cc", ("b", "d", "eee")) for n in range(6)]
    expected = []
    for item in items:
        prompt = tokenizer._ids(f"Question: {item.question}\nAnswer:")
        scores = []
        for answer in (item.right, *item.wrong):
            ids = prompt + tokenizer._ids(f" {answer}")
            log_p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
            places = range(len(prompt), len(ids))
            scores.append(sum(float(log_p[t - 1, ids[t]]) for t in places) / len(places))
        expected.append(scores[0] > max(scores[1:]))
    assert answer_items(loaded, items) == expected
    assert answer_items(loaded, items, tokens_per_batch=1) == expected
    assert True in expected
    assert False in expected
    assert answer_items(loaded, []) == []


def test_loss_has_an_interval() -> None:
    """Of 40 items 6 are lost and 2 gained: 10 points, within an interval that holds 0."""
    items = [Item("facts", str(n), "a", ("b",)) for n in range(40)]
    before = [True] * 30 + [False] * 10
    after = [False] * 6 + [True] * 24 + [True] * 2 + [False] * 8
    found = compare_items(items, before, after)
    assert (found.before.count, found.after.count) == (30, 26)
    assert found.lost_points == pytest.approx(10.0)
    assert found.lower < 0
    assert found.upper > 10
    assert found.p_value == pytest.approx(0.2890625)
    assert found.groups == {"facts": (30, 26, 40)}
    same = compare_items(items, before, before)
    assert same.lost_points == 0
    assert same.lower == -same.upper


def test_what_was_at_chance_cannot_show_a_loss() -> None:
    """Sums at chance gain, facts are lost: in all items that is a gain, in what was known not."""
    items = [Item("arithmetic", str(n), "1", ("2", "3", "4")) for n in range(100)]
    items += [Item("facts", str(n), "a", ("b", "c", "d")) for n in range(40)]
    before = [n < 25 for n in range(100)] + [n < 24 for n in range(40)]
    after = [n < 60 for n in range(100)] + [n < 18 for n in range(40)]
    found = compare_items(items, before, after)
    assert found.lost_points < 0
    assert list(found.known) == ["facts"]
    points, lower, upper = found.known["facts"]
    assert points == pytest.approx(15.0)
    assert lower < points < upper
    nothing = compare_items(items[:100], before[:100], after[:100])
    assert nothing.known == {}


def test_every_item_is_answered_twice() -> None:
    """Before and after."""
    with pytest.raises(InvalidParameterError, match="before and after"):
        compare_items(make_items(), [True], [True])
