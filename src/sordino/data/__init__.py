"""Data: records and pools, tasks, batches, and the embedded movie reviews.

Importing this package does not import torch. The function `collate` is imported from its module,
`sordino.data.collate`, whose name it has.
"""

from sordino.data.collate import Batch, plan_batches
from sordino.data.embedded import Review, embedded_reviews, split_reviews, write_demo_data
from sordino.data.pool import (
    Record,
    count_duplicates,
    find_kind,
    group_by_unit,
    iterate_records,
    normalize_text,
    overlap,
    read_records,
)
from sordino.data.record_file import RecordFile, Records, labels_of, pick_records
from sordino.data.tasks import (
    ClassificationTask,
    CompletionTask,
    Example,
    GenerationTask,
    PromptTask,
    default_verbalizers,
    parse_verbalizers,
    token_f1,
)

__all__ = [
    "Batch",
    "ClassificationTask",
    "CompletionTask",
    "Example",
    "GenerationTask",
    "PromptTask",
    "Record",
    "RecordFile",
    "Records",
    "Review",
    "count_duplicates",
    "default_verbalizers",
    "embedded_reviews",
    "find_kind",
    "group_by_unit",
    "iterate_records",
    "labels_of",
    "normalize_text",
    "overlap",
    "parse_verbalizers",
    "pick_records",
    "plan_batches",
    "read_records",
    "split_reviews",
    "token_f1",
    "write_demo_data",
]
