"""Tasks: which tokens a record becomes, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data import (
    ClassificationTask,
    CompletionTask,
    GenerationTask,
    PromptTask,
    Record,
    default_verbalizers,
    parse_verbalizers,
    token_f1,
)

STORIES = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "stories260K-hf"
VERBALIZERS = {"0": "terrible", "1": "great"}
SPECIAL = ["<s>", "</s>", "<unk>"]


def make_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer of single characters, in three styles that models really use.

    plain: a space belongs to the next character's token; no start token.
    start: the same with a start token and an end token around every text.
    space: a space goes before every text that has none, as SentencePiece does; start token.
    """
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*SPECIAL, "▁", *letters, *(f"▁{letter}" for letter in letters)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    start, end, unknown = SPECIAL
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if kind == "space" else replace
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]|▁"), "isolated")
    if kind != "plain":
        around = f"{start} $A {end}" if kind == "start" else f"{start} $A"
        pairs = [(start, 0), (end, 1)]
        backend.post_processor = processors.TemplateProcessing(around, None, pairs)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=start, eos_token=end, unk_token=unknown
    )


@pytest.fixture(params=["plain", "start", "space", "stories"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param != "stories":
        return make_tokenizer(request.param)
    if not STORIES.is_dir():
        pytest.skip("shared/data is not on this machine")
    return AutoTokenizer.from_pretrained(STORIES, local_files_only=True)


def review(text: str, label: str = "1", line: int = 1) -> Record:
    return Record(text, label, (), line)


def question(prompt: str, *references: str, line: int = 1) -> Record:
    return Record(prompt, None, references, line)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of tokens, with a start token as ^, an end token as $ and spaces visible."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return "".join({"<s>": "^", "</s>": "$"}.get(token, token) for token in tokens)


# --- classification -----------------------------------------------------------------------------


def test_classification_writes_the_text_into_the_template(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    task = ClassificationTask(VERBALIZERS)
    records = [review("a film"), review("I saw it", "0")]
    examples = task.encode(records, tokenizer, 64)
    texts = [decode(tokenizer, example.input_ids).lstrip("^▁") for example in examples]
    assert texts == ["a▁film▁It▁was", "I▁saw▁it▁It▁was"]
    assert [example.target for example in examples] == [1, 0]
    assert task.labels == ("0", "1")
    has_start = [ids.input_ids[0] == tokenizer.bos_token_id for ids in examples]
    assert has_start == [tokenizer("x").input_ids[0] == tokenizer.bos_token_id] * 2
    assert all(example.input_ids[-1] != tokenizer.eos_token_id for example in examples)


def test_first_token_of_each_word_is_what_follows_the_template(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    task = ClassificationTask({"b": "great", "a": "terrible"})
    found = tokenizer.convert_ids_to_tokens(task.label_token_ids(tokenizer))
    assert found == ["▁t", "▁g"]  # in the order of the labels
    whole = tokenizer("so It was great", add_special_tokens=False).input_ids
    prompt = tokenizer("so It was", add_special_tokens=False).input_ids
    assert whole[len(prompt)] == task.label_token_ids(tokenizer)[1]


@pytest.mark.parametrize("words", [("good", "great"), ("great", "great"), ("é", "great")])
def test_first_tokens_must_differ_and_be_known(words: tuple[str, str]) -> None:
    task = ClassificationTask({"0": words[0], "1": words[1]})
    with pytest.raises(InvalidParameterError, match=r"different and known first tokens.*--verbal"):
        task.label_token_ids(make_tokenizer("plain"))


def test_unknown_label_names_the_line_and_the_known_labels() -> None:
    task = ClassificationTask(VERBALIZERS)
    records = [review("a"), review("b", "2", line=7)]
    message = r"line 7: unknown label '2'\. Known labels: 0, 1\. .*--verbalizer LABEL=WORD"
    with pytest.raises(InvalidDataError, match=message):
        task.encode(records, make_tokenizer("plain"), 64)


def test_a_label_that_looks_like_a_text_is_not_printed() -> None:
    task = ClassificationTask(VERBALIZERS)
    records = [review("a", "Mr Ramirez has a cough", line=7)]
    with pytest.raises(InvalidDataError, match=r"line 7: unknown label\. Known"):
        task.encode(records, make_tokenizer("plain"), 64)


def test_kinds_of_records_are_not_mixed_up() -> None:
    tokenizer = make_tokenizer("plain")
    with pytest.raises(InvalidDataError, match="line 3: classification needs"):
        ClassificationTask(VERBALIZERS).encode([question("a", "b", line=3)], tokenizer, 64)
    for task in (CompletionTask(), GenerationTask()):
        with pytest.raises(InvalidDataError, match="line 3: this task needs"):
            task.encode([review("a", line=3)], tokenizer, 64)


@pytest.mark.parametrize(
    "template",
    ["", "It was", "{text}{text}", "{text} It was ", "{text}\n", "{label} {text} {text}"],
)
def test_template_refused(template: str) -> None:
    with pytest.raises(InvalidParameterError, match="template must contain"):
        ClassificationTask(VERBALIZERS, template)


@pytest.mark.parametrize("verbalizers", [{}, {"0": "bad"}, {"0": "bad", "1": " "}])
def test_verbalizers_refused(verbalizers: dict[str, str]) -> None:
    with pytest.raises(InvalidParameterError, match="at least two labels"):
        ClassificationTask(verbalizers)


def test_long_record_without_truncation() -> None:
    task = ClassificationTask(VERBALIZERS)
    records = [
        review("ok"),
        review("x" * 30, line=2),
        *(review("y" * 20, line=n) for n in range(3, 9)),
    ]
    message = (
        r"7 of 8 records are longer than 16 tokens: line 2 \(36 tokens\), line 3 \(26 tokens\), "
        r"line 4 \(26 tokens\), line 5 \(26 tokens\), line 6 \(26 tokens\), \.\.\.\. .*--truncate"
    )
    with pytest.raises(InvalidDataError, match=message):
        task.encode(records, make_tokenizer("start"), 16)


@pytest.mark.parametrize("template", ["{text} It was", "Film: {text} It was"])
def test_truncation_cuts_the_beginning_of_the_text(
    template: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = ClassificationTask(VERBALIZERS, template)
    text = "a b c d e f g h i j k l m n"
    (whole,) = task.encode([review(text)], tokenizer, 64)
    for max_length in range(len(whole.input_ids) - 12, len(whole.input_ids) + 1):
        (cut,) = task.encode([review(text)], tokenizer, max_length, truncate=True)
        assert len(cut.input_ids) == max_length
        written = decode(tokenizer, cut.input_ids).lstrip("^▁")
        head, tail = template.replace(" ", "▁").split("{text}")
        head = head.removesuffix("▁")  # this space may be part of the text's first token
        assert written.startswith(head)
        left = written.removeprefix(head).removesuffix(tail).lstrip("▁")
        assert text.replace(" ", "▁").endswith(left)
        assert written.endswith("n" + tail)
        starts = [ids[0] == tokenizer.bos_token_id for ids in (cut.input_ids, whole.input_ids)]
        assert starts[0] == starts[1]


def test_template_that_fills_the_context() -> None:
    task = ClassificationTask(VERBALIZERS)
    with pytest.raises(InvalidDataError, match=r"1 of 1 .* longer than 6 .* line 5 \(7 tokens\)"):
        task.encode([review("abcdef", line=5)], make_tokenizer("start"), 6, truncate=True)
    (example,) = task.encode([review("abcdef")], make_tokenizer("start"), 7, truncate=True)
    assert decode(make_tokenizer("start"), example.input_ids) == "^f▁It▁was"


def test_text_in_braces_is_text() -> None:
    tokenizer = make_tokenizer("plain")
    (example,) = ClassificationTask(VERBALIZERS).encode([review("{text}{0}")], tokenizer, 64)
    assert decode(tokenizer, example.input_ids) == "{text}{0}▁It▁was"


def test_record_that_just_fits_is_not_touched() -> None:
    task = ClassificationTask(VERBALIZERS)
    (example,) = task.encode([review("ab")], make_tokenizer("plain"), 8, truncate=True)
    assert decode(make_tokenizer("plain"), example.input_ids) == "ab▁It▁was"


def test_nothing_to_encode() -> None:
    for task in (ClassificationTask(VERBALIZERS), CompletionTask(), GenerationTask()):
        assert task.encode([], make_tokenizer("plain"), 64) == []


@pytest.mark.parametrize("max_length", [0, -1, 2.5, True])
def test_max_length_refused(max_length: int) -> None:
    for task in (ClassificationTask(VERBALIZERS), CompletionTask(), GenerationTask()):
        with pytest.raises(InvalidParameterError, match="max_length"):
            task.encode([], make_tokenizer("plain"), max_length)


# --- completion ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("ab", "cd", ("ab", "▁cd$")),
        ("ab", " cd", ("ab", "▁cd$")),
        ("ab ", "cd", ("ab▁", "cd$")),
    ],
)
def test_completion_is_scored_with_its_end(
    prompt: str, completion: str, expected: tuple[str, str], tokenizer: PreTrainedTokenizerBase
) -> None:
    (example,) = CompletionTask().encode([question(prompt, completion, "other")], tokenizer, 64)
    count = example.num_prompt_tokens
    assert decode(tokenizer, example.input_ids[:count]).lstrip("^▁") == expected[0]
    # a lone space before the first letter may be a token of its own
    assert decode(tokenizer, example.input_ids[count:]).lstrip("▁") == expected[1].lstrip("▁")
    start = [tokenizer.bos_token_id] if example.input_ids[0] == tokenizer.bos_token_id else []
    alone = tokenizer(prompt, add_special_tokens=False).input_ids
    assert example.input_ids[:count] == start + alone  # as when the model is used


def test_completion_truncation_keeps_the_completion() -> None:
    tokenizer = make_tokenizer("start")
    records = [question("abcdefgh", "xyz")]
    (example,) = CompletionTask().encode(records, tokenizer, 8, truncate=True)
    assert decode(tokenizer, example.input_ids) == "^fgh▁xyz$"
    assert example.num_prompt_tokens == 4
    with pytest.raises(InvalidDataError, match="--truncate"):
        CompletionTask().encode(records, tokenizer, 8)
    with pytest.raises(InvalidDataError, match="Shorten the template or the completions"):
        CompletionTask().encode(records, tokenizer, 5, truncate=True)


def test_completion_needs_an_end_token() -> None:
    tokenizer = make_tokenizer("plain")
    tokenizer.eos_token = None
    with pytest.raises(InvalidParameterError, match="end token"):
        CompletionTask().encode([question("a", "b")], tokenizer, 8)


def test_prompt_without_tokens() -> None:
    tokenizer = make_tokenizer("plain")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "")
    for task in (CompletionTask(), GenerationTask()):
        with pytest.raises(InvalidDataError, match="line 1: the tokenizer makes no token"):
            task.encode([question("a", "b")], tokenizer, 64)


# --- generation ---------------------------------------------------------------------------------


def test_generation_keeps_room_for_the_answer() -> None:
    tokenizer = make_tokenizer("start")
    records = [question("abcdefgh", "x", "y")]
    task = GenerationTask(max_new_tokens=4)
    (example,) = task.encode(records, tokenizer, 13)
    assert decode(tokenizer, example.input_ids) == "^abcdefgh"
    assert example.references == ("x", "y")
    with pytest.raises(InvalidDataError, match=r"longer than 8 tokens: line 1 \(9 tokens\)"):
        task.encode(records, tokenizer, 12)
    (example,) = task.encode(records, tokenizer, 8, truncate=True)
    assert decode(tokenizer, example.input_ids) == "^fgh"
    with pytest.raises(InvalidParameterError, match="max_new_tokens"):
        GenerationTask(max_new_tokens=0)


def test_prompts_keep_room_and_need_no_reference() -> None:
    tokenizer = make_tokenizer("start")
    records = [Record("abcdefgh", None, (), 1)]
    task = PromptTask(max_new_tokens=4)
    (example,) = task.encode(records, tokenizer, 13)
    assert decode(tokenizer, example.input_ids) == "^abcdefgh"
    assert (example.target, example.num_prompt_tokens, example.references) == (None, None, ())
    with pytest.raises(InvalidDataError, match=r"longer than 8 tokens: line 1 \(9 tokens\)"):
        task.encode(records, tokenizer, 12)
    with pytest.raises(InvalidParameterError, match="max_new_tokens"):
        PromptTask(max_new_tokens=0)


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("The cat!", ["cat"], 1.0),
        ("cat", ["dog"], 0.0),
        ("a cat sat", ["the cat sat down"], 0.8),
        ("cat cat", ["cat"], 2 / 3),
        ("cat", ["dog", "a cat"], 1.0),
        ("", ["cat"], 0.0),
        ("the", ["an"], 1.0),
        ("", [""], 1.0),
        ("cat", ["the"], 0.0),
        ("U.S.A.", ["usa"], 1.0),
        ("theatre", ["atre"], 0.0),  # an article inside a word is no article
    ],
)
def test_token_f1(prediction: str, references: list[str], expected: float) -> None:
    assert token_f1(prediction, references) == pytest.approx(expected)


def test_token_f1_needs_a_reference() -> None:
    with pytest.raises(InvalidParameterError, match="references"):
        token_f1("cat", [])


# --- verbalizers --------------------------------------------------------------------------------


def test_parse_verbalizers() -> None:
    assert parse_verbalizers(["0=terrible", " 1 = great "]) == VERBALIZERS
    assert parse_verbalizers(["a=b=c"]) == {"a": "b=c"}
    assert parse_verbalizers([]) == {}


@pytest.mark.parametrize("pair", ["great", "=great", "1=", " = ", ""])
def test_parse_verbalizers_refuses(pair: str) -> None:
    with pytest.raises(InvalidParameterError, match="LABEL=WORD, such as 1=great"):
        parse_verbalizers(["0=terrible", pair])


def test_parse_verbalizers_refuses_a_label_twice() -> None:
    with pytest.raises(InvalidParameterError, match="got 0 twice"):
        parse_verbalizers(["0=terrible", "0=bad"])


def test_default_verbalizers() -> None:
    assert default_verbalizers(["1", "0", "1"]) == VERBALIZERS
    assert default_verbalizers(["positive", "negative"]) == {
        "negative": "terrible",
        "positive": "great",
    }


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (["0"], "Labels found: 0\\."),
        ([], "Labels found: none\\."),
        (["0", "1", "2"], "Labels found: 0, 1, 2\\."),
        (["yes", "Mr Ramirez has a cough"], "Labels found: yes and 1 more\\."),
        ([f"c{i:02}" for i in range(30)], "c19 and 10 more\\."),
    ],
)
def test_default_verbalizers_tell_how_to_give_words(labels: list[str], shown: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"--verbalizer LABEL=WORD.*{shown}"):
        default_verbalizers(labels)
