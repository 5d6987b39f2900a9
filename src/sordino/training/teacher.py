"""The teacher of a distillation: loaded, compared with the student, frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidParameterError
from sordino.gradients.distillation import DistillationObjective, DistillationSettings
from sordino.gradients.objectives import LanguageModel
from sordino.models import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sordino.data import Example
    from sordino.models import LoadedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationOptions:
    """Who teaches, and how.

    Args:
        teacher: Folder, GGUF file, hub id, or "embedded".
        settings: How the student writes, and how it is compared.
    """

    teacher: str
    settings: DistillationSettings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teacher:
    """A frozen model whose tokens mean what the student's mean.

    Args:
        model: The teacher as objectives see it.
        settings: How the student writes, and how it is compared.
        context_length: Longest input in tokens.
        fingerprint: Hash of the teacher's files.
        end_token_id: The student's end token.
    """

    model: LanguageModel
    settings: DistillationSettings
    context_length: int
    fingerprint: str
    end_token_id: int | None

    def objective(self, examples: Sequence[Example]) -> DistillationObjective:
        """Returns the divergence from this teacher after the given prompts."""
        return DistillationObjective(
            examples, self.model, self.settings, end_token_id=self.end_token_id
        )


def load_teacher(
    options: DistillationOptions, student: LoadedModel, dtype: torch.dtype, device: str
) -> Teacher:
    """Returns the teacher.

    Args:
        options: Who teaches, and how.
        student: The model that learns.
        dtype: Compute type.
        device: The student's device.

    Raises:
        InvalidParameterError: If the two do not have the same tokens, or are one model.
        ModelUnavailableError: If the teacher cannot be loaded.
    """
    loaded = load_model(options.teacher, dtype=dtype, device=device)
    _require_same_vocabulary(loaded.tokenizer, student.tokenizer)
    if loaded.fingerprint == student.fingerprint:
        raise InvalidParameterError(
            "teacher and student are the same model, which has nothing to learn from itself: give "
            "another --teacher."
        )
    return Teacher(
        model=LanguageModel(loaded.model, loaded.tokenizer.pad_token_id),
        settings=options.settings,
        context_length=loaded.context_length,
        fingerprint=loaded.fingerprint,
        end_token_id=student.tokenizer.eos_token_id,
    )


def _require_same_vocabulary(teacher: Any, student: Any) -> None:
    """Raises unless every token has the same number in both tokenizers."""
    of_teacher, of_student = teacher.get_vocab(), student.get_vocab()
    differing = {
        token
        for token in {*of_teacher, *of_student}
        if of_teacher.get(token) != of_student.get(token)
    }
    if differing or teacher.eos_token_id != student.eos_token_id:
        what = (
            f"{len(differing)} tokens are in one only or have another number"
            if differing
            else "their end tokens differ"
        )
        raise InvalidParameterError(
            "the teacher's probabilities are compared token by token, so teacher and student must "
            f"have the same tokenizer: the teacher has {len(of_teacher)} tokens, the student "
            f"{len(of_student)}, and {what}. Choose a teacher of the student's family."
        )
