"""The embedded reviews: the documented counts, and splits that never overlap."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import sordino.data
from sordino.core.errors import InvalidParameterError
from sordino.data import (
    embedded_reviews,
    normalize_text,
    read_records,
    split_reviews,
    write_demo_data,
)

FOLDER = Path(sordino.data.__file__).parent / "reviews"


def test_counts() -> None:
    reviews = embedded_reviews()
    assert len(reviews) == 10_072
    assert sum(review.label == "1" for review in reviews) == 4_996
    assert len({review.id for review in reviews}) == 10_072
    assert len({normalize_text(review.text) for review in reviews}) == 10_070
    assert all(review.text == review.text.strip() != "" for review in reviews)


def test_vendored_files_are_as_published() -> None:
    content = (FOLDER / "movie_reviews.tsv").read_bytes()
    published = content.rstrip(b"\n").replace(b"\n", b"\r\n")
    digest = hashlib.sha256(published).hexdigest()
    assert digest in (FOLDER / "README.md").read_text()
    assert "Copyright (c) 2016 C.J. Hutto" in (FOLDER / "LICENSE").read_text()


def test_changing_the_list_does_not_change_the_data() -> None:
    embedded_reviews().clear()
    assert len(embedded_reviews()) == 10_072


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_split_is_disjoint_in_text(seed: int) -> None:
    train, heldout = split_reviews(6_000, 4_070, seed)
    texts = [normalize_text(review.text) for review in (*train, *heldout)]
    assert (len(train), len(heldout)) == (6_000, 4_070)
    assert len(set(texts)) == len(texts) == 10_070


def test_split_is_a_public_function_of_the_seed() -> None:
    train, heldout = split_reviews(3, 2, seed=0)
    assert split_reviews(3, 2, seed=0) == (train, heldout)
    assert split_reviews(5, 0, seed=0) == (train + heldout, [])
    assert split_reviews(3, 2, seed=1) != (train, heldout)
    digests = [hashlib.sha256(f"0:{r.id}".encode()).hexdigest() for r in (*train, *heldout)]
    assert digests == sorted(digests)


def test_split_keeps_the_balance() -> None:
    train, _ = split_reviews(1_000, 0, seed=0)
    assert 440 <= sum(review.label == "1" for review in train) <= 560


@pytest.mark.parametrize(
    ("num_train", "num_heldout", "seed"),
    [(0, 1, 0), (1, -1, 0), (1, 1, -1), (10_000, 71, 0), (1.5, 1, 0)],
)
def test_split_refuses(num_train: int, num_heldout: int, seed: int) -> None:
    with pytest.raises(InvalidParameterError, match=r"num_train|num_heldout|seed"):
        split_reviews(num_train, num_heldout, seed)


def test_demo_data_reads_back(tmp_path: Path) -> None:
    train, heldout = write_demo_data(tmp_path / "demo", 40, 20, seed=3)
    expected = split_reviews(40, 20, seed=3)
    for path, reviews in zip((train, heldout), expected, strict=True):
        pairs = [(record.prompt, record.label) for record in read_records(path)]
        assert pairs == [(review.text, review.label) for review in reviews]
    first = train.read_bytes()
    write_demo_data(tmp_path / "demo", 40, 20, seed=3)
    assert train.read_bytes() == first
    assert b"\r" not in first


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, sordino.data; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    source = str(Path(sordino.data.__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": source},
    )
    assert result.stdout.strip() == "set()"
