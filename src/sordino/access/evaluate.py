"""Answers of a model to access questions, and their grades.

Answers are greedy: the likeliest token always, so that the same model and question give the same
answer, up to the rounding of arithmetic. By default an answer ends with the closing braces, as an
application that reads the braces would cut it; what a model would go on to say is then not graded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sordino.access.benchmark import examine
from sordino.access.prompts import OPEN_THOUGHT, encode_prompt, opens_thought
from sordino.access.results import GradedAnswer
from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.gradients.generation import Decoding, generate_texts
from sordino.gradients.objectives import LanguageModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sordino.access.questions import Question
    from sordino.models import LoadedModel

MAX_NEW_TOKENS = 96
TOKENS_PER_BATCH = 16_384
THOUGHT_OPENING = "<think>"
_ANSWERED = re.compile(r"\{\{.*?\}\}", re.DOTALL)


def is_answered(text: str) -> bool:
    """Returns whether an answer in double braces is complete, outside an unfinished thought.

    Example:
        >>> is_answered("It is {{42}}"), is_answered("{{42"), is_answered("<think>{{42}}")
        (True, False, False)
    """
    return _ANSWERED.search(text) is not None and OPEN_THOUGHT.search(text) is None


def answer_questions(
    loaded_model: LoadedModel,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    stop_at_braces: bool = True,
) -> list[str]:
    """Returns the model's own output for each question, in their order.

    Args:
        loaded_model: The model with its tokenizer; adapters may be inside it.
        questions: What to ask.
        max_new_tokens: Longest answer.
        tokens_per_batch: Bounds the memory: prompts and answers of a batch together.
        stop_at_braces: Whether an answer ends with the first closed double braces; else only with
            the end token.

    Raises:
        InvalidParameterError: If a number is out of range.
        InvalidDataError: If a question does not fit into the model's context, or holds a special
            token.
        PrecisionError: If the model gives NaN.
    """
    answers = dict(
        iterate_answers(
            loaded_model,
            questions,
            max_new_tokens=max_new_tokens,
            tokens_per_batch=tokens_per_batch,
            stop_at_braces=stop_at_braces,
        )
    )
    return [answers[number] for number in range(len(questions))]


def iterate_answers(
    loaded_model: LoadedModel,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    stop_at_braces: bool = True,
) -> Iterator[tuple[int, str]]:
    """Yields the number of each question and its answer, a batch after the other.

    Arguments and errors are those of `answer_questions`.
    """
    require_integer("max_new_tokens", max_new_tokens, 1)
    require_integer("tokens_per_batch", tokens_per_batch, 1)
    tokenizer = loaded_model.tokenizer
    prompts = [encode_prompt(question, tokenizer) for question in questions]
    room = loaded_model.context_length - max_new_tokens
    for question, prompt in zip(questions, prompts, strict=True):
        if len(prompt) > room:  # a cut prompt would lose the rules
            raise InvalidDataError(
                f"question {question.id} must leave room for an answer of {max_new_tokens} tokens "
                f"in a context of {loaded_model.context_length}; it has {len(prompt)} tokens. Use "
                "a model with a longer context, or fewer new tokens."
            )
    # where the chat template opens a thought, the answer begins inside of it
    opening = THOUGHT_OPENING if opens_thought(tokenizer) else ""
    texts = generate_texts(
        LanguageModel(loaded_model.model, loaded_model.tokenizer.pad_token_id),
        tokenizer,
        prompts,
        Decoding(max_new_tokens=max_new_tokens, temperature=0.0),
        context_length=loaded_model.context_length,
        seed=0,  # greedy: nothing is drawn
        tokens_per_batch=tokens_per_batch,
        is_finished=(lambda text: is_answered(opening + text)) if stop_at_braces else None,
    )
    return ((number, opening + text) for number, text in texts)


def grade_answers(questions: Sequence[Question], answers: Sequence[str]) -> list[GradedAnswer]:
    """Returns the graded answers, in the order of the questions.

    Raises:
        InvalidParameterError: If there is not one answer for each question.
    """
    if len(questions) != len(answers):
        raise InvalidParameterError(
            f"every question must have one answer, got {len(answers)} answers to "
            f"{len(questions)} questions."
        )
    return [
        GradedAnswer(
            question=question.id,
            questionnaire=question.questionnaire,
            attribute=question.attribute,
            kind=question.kind,
            grading=examine(answer, question.expected, question.kind, question=question.prompt),
            pair=question.pair,
        )
        for question, answer in zip(questions, answers, strict=True)
    ]
