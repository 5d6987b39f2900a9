"""Public sentences to look at before and during a run: looking at them costs no privacy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.data import ClassificationTask, Record

if TYPE_CHECKING:
    from sordino.training.encoding import Task

# Written for this purpose: public by construction, so that looking at them costs nothing.
PROBE_TEXTS = (
    "The river was quiet and the boats lay still under the bridge.",
    "Nothing in the second half made up for a slow and noisy start.",
    "She packed two apples, a map and a very small umbrella.",
    "The train left on time, which surprised everyone on the platform.",
    "A long argument about tea ended, as usual, with coffee.",
    "The garden looked better in the photograph than it ever did in June.",
    "He counted the stairs twice and got a different number each time.",
    "Their new song is short, loud and impossible to forget.",
)
_MAX_LABELLED = 64


def mixed_probes(task: Task) -> list[Record]:
    """Returns one record a sentence: with labels in turn, or its last words as completion."""
    if isinstance(task, ClassificationTask):
        labels = task.labels
        return [
            Record(text, labels[i % len(labels)], (), i + 1) for i, text in enumerate(PROBE_TEXTS)
        ]
    words = [text.rsplit(" ", 3) for text in PROBE_TEXTS]
    return [Record(w[0], None, (" ".join(w[1:]),), i + 1) for i, w in enumerate(words)]


def labelled_probes(task: ClassificationTask) -> list[Record]:
    """Returns sentences with every label each, the labels of a sentence side by side."""
    num_texts = max(1, min(len(PROBE_TEXTS), _MAX_LABELLED // len(task.labels)))
    return [
        Record(text, label, (), i + 1)
        for i, text in enumerate(PROBE_TEXTS[:num_texts])
        for label in task.labels
    ]
