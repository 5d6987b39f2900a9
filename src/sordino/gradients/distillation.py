"""On-policy distillation: a student is graded by a teacher on what the student itself writes.

The student samples a continuation of every prompt; on each token of it the teacher's distribution
over the whole vocabulary is compared with the student's. Gradients flow through the comparison
only: what was written and what the teacher thinks of it are constants of a step.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sordino.core.checks import require_in_range, require_integer, require_one_of, require_positive
from sordino.core.entropy import OperatingSystemEntropy
from sordino.data.collate import collate
from sordino.data.tasks import Example
from sordino.gradients.objectives import LOGIT_ROWS_AT_ONCE, AbstractObjective

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sordino.gradients.objectives import LanguageModel

DIVERGENCES = ("reverse-kl", "forward-kl", "jensen-shannon")
_LEAST_SHARE = 1e-3  # closer to 0 or 1 the divergence and its gradient vanish


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationSettings:
    """How the student writes, and how it is compared.

    Args:
        max_new_tokens: Longest continuation.
        temperature: Of the student's sampling; the comparison itself is always at temperature 1.
        divergence: With p the teacher's and q the student's distribution: "reverse-kl" is KL(q||p),
            "forward-kl" KL(p||q), "jensen-shannon" beta KL(p||m) + (1 - beta) KL(q||m) with
            m = beta p + (1 - beta) q.
        beta: The teacher's share in the mixture m; in [0.001, 0.999].

    Raises:
        InvalidParameterError: If a setting is out of range.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    divergence: str = "reverse-kl"
    beta: float = 0.5

    def __post_init__(self) -> None:
        require_integer("max_new_tokens", self.max_new_tokens, 1)
        require_positive("temperature", self.temperature)
        require_one_of("divergence", self.divergence, DIVERGENCES)
        require_in_range("beta", self.beta, _LEAST_SHARE, 1.0 - _LEAST_SHARE)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rollouts:
    """What the student wrote after the prompts of one batch, and what the teacher makes of it.

    Args:
        records: The batch.
        continuations: Written tokens of each record; the end token, if it came, is the last.
        input_ids: Prompts and continuations, padded on the right, shape (batch_size, length).
        sequences: Row of each written token, ascending, shape (num_tokens,).
        positions: Where each written token is predicted: one before it, shape (num_tokens,).
        teacher_states: What `LanguageModel.logits_of` needs for the teacher's logits there.
    """

    records: tuple[int, ...]
    continuations: list[list[int]]
    input_ids: torch.Tensor
    sequences: torch.Tensor
    positions: torch.Tensor
    teacher_states: torch.Tensor


class DistillationObjective(AbstractObjective):
    """Mean divergence between teacher and student over the tokens that the student writes.

    `prepare` lets the student write and the teacher read; `losses` of the same records follow.

    Guarantee:
        A record's loss depends on its own prompt and continuation only. Continuations are drawn
        independently of each other, so the neighbors in a batch do not change the distribution of
        what is written for a record: what bounds a clipped contribution for given continuations
        bounds it for random ones. Assumes: exact arithmetic; that of a forward pass, and with it a
        rare token, may depend on the shape of the batch.

    Args:
        examples: Prompts.
        teacher: Frozen; its tokens mean what the student's mean.
        settings: How the student writes, and how it is compared.
        end_token_id: Ends a continuation; None: each has `max_new_tokens` tokens.

    Source:
        arXiv:2306.13649 (generalised, on-policy distillation); arXiv:2604.04461 (the same with
        differential privacy through the student's steps). Departure: every continuation is the
        student's own; none comes from the records.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        teacher: LanguageModel,
        settings: DistillationSettings,
        *,
        end_token_id: int | None,
    ) -> None:
        self._examples = examples
        self._teacher = teacher
        self._settings = settings
        self._end = end_token_id
        self._generator: torch.Generator | None = None
        self.rollouts: Rollouts | None = None
        self.lengths = [len(e.input_ids) + settings.max_new_tokens for e in examples]

    @torch.no_grad()
    def prepare(self, model: LanguageModel, records: Sequence[int]) -> None:
        """Lets the student write after the prompts, and the teacher read it."""
        self.rollouts = None  # before memory is needed for the next ones
        if self._generator is None:
            self._generator = secret_generator(model.device)
        prompts = [self._examples[i].input_ids for i in records]
        continuations = sample_continuations(
            model,
            prompts,
            self._settings,
            end_token_id=self._end,
            num_tokens=self._num_tokens(model),
            generator=self._generator,
        )
        pairs = zip(prompts, continuations, strict=True)
        batch = collate(
            [Example(prompt + written, num_prompt_tokens=len(prompt)) for prompt, written in pairs],
            model.pad_token_id,
        ).to(model.device)
        sequences, places = batch.completion_mask.nonzero(as_tuple=True)
        self.rollouts = Rollouts(
            records=tuple(records),
            continuations=continuations,
            input_ids=batch.input_ids,
            sequences=sequences,
            positions=places - 1,
            teacher_states=self._teacher.states_at(batch.input_ids, sequences, places - 1),
        )

    def losses(self, model: LanguageModel, records: Sequence[int]) -> torch.Tensor:
        """Returns mean divergences over the continuations of `prepare`, in nats a token."""
        now = self.rollouts
        if now is None or now.records != tuple(records):
            raise RuntimeError("losses need prepare(model, records) of the same records first.")
        states = model.states_at(now.input_ids, now.sequences, now.positions)
        num_tokens = self._num_tokens(model)
        parts = []
        for start in range(0, states.shape[0], LOGIT_ROWS_AT_ONCE):
            rows = slice(start, start + LOGIT_ROWS_AT_ONCE)
            with torch.no_grad():
                teacher = self._teacher.logits_of(now.teacher_states[rows], now.sequences[rows])
            student = model.logits_of(states[rows], now.sequences[rows])
            parts.append(
                divergences(
                    student[:, :num_tokens],
                    teacher[:, :num_tokens],
                    self._settings.divergence,
                    beta=self._settings.beta,
                )
            )
        totals = torch.zeros(len(records), device=states.device)
        totals = totals.index_add(0, now.sequences, torch.cat(parts))
        return totals / torch.bincount(now.sequences, minlength=len(records))

    def _num_tokens(self, model: LanguageModel) -> int:
        """Returns how many tokens both embed: models of one tokenizer may be padded differently."""
        return min(model.num_tokens, self._teacher.num_tokens)


def secret_generator(device: torch.device) -> torch.Generator:
    """Returns a random stream of its own, seeded by the operating system.

    Continuations need no cryptographic stream: what protects a record is the bound on its gradient
    and the noise, whatever is written. But they must not follow from a public seed: then the
    neighbors in a batch would decide, through the stream's position, what is written for a record.
    """
    seed = OperatingSystemEntropy().index(2**63)
    return torch.Generator(device=device).manual_seed(seed)


@torch.no_grad()
def sample_continuations(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    settings: DistillationSettings,
    *,
    end_token_id: int | None,
    num_tokens: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """Returns tokens that the model samples after each prompt, up to and with its end token.

    Args:
        model: The student.
        prompts: Token lists of any lengths, at least one token each.
        settings: Longest continuation and temperature.
        end_token_id: Ends a continuation; None: nothing does.
        num_tokens: Only tokens below this number are sampled.
        generator: On the model's device; the global random stream is neither read nor moved.
    """
    from transformers import GenerationConfig

    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), model.pad_token_id)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):  # generation continues at the right end
        input_ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1

    def add_gumbel_noise(_tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Makes the likeliest token a sample: the argmax of logits plus Gumbel noise is one."""
        noisy = logits.float() / settings.temperature
        noisy = noisy - torch.empty_like(noisy).exponential_(generator=generator).log()
        noisy[:, num_tokens:] = -torch.inf
        return noisy

    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=model.pad_token_id,
        eos_token_id=end_token_id,
    )
    with _no_defaults_of_its_own(model.causal_lm):
        output = model.causal_lm.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=[add_gumbel_noise],
        )
    return [_until_end(row, end_token_id) for row in output[:, width:].tolist()]


@contextmanager
def _no_defaults_of_its_own(causal_lm: Any) -> Iterator[None]:
    """Context in which a model's own penalties and end tokens do not change what it samples."""
    from transformers import GenerationConfig

    own = causal_lm.generation_config
    causal_lm.generation_config = GenerationConfig()
    try:
        yield
    finally:
        causal_lm.generation_config = own


def _until_end(tokens: list[int], end_token_id: int | None) -> list[int]:
    """Returns tokens up to the first end token, with it; what stands behind is padding."""
    return tokens[: tokens.index(end_token_id) + 1] if end_token_id in tokens else tokens


def divergences(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, divergence: str, *, beta: float
) -> torch.Tensor:
    """Returns the divergence between two distributions a row, in nats, shape (num_rows,).

    Args:
        student_logits: Shape (num_rows, num_tokens); gets gradients.
        teacher_logits: Same shape; a constant.
        divergence: See `DistillationSettings`.
        beta: See `DistillationSettings`.
    """
    require_one_of("divergence", divergence, DIVERGENCES)
    return _Divergence.apply(student_logits, teacher_logits, divergence, beta)


class _Divergence(torch.autograd.Function):
    """Value and gradient at once, so that one tensor of logits' size is kept and not five.

    With q = softmax(s), a loss f(q) has the gradient q * (g - <q, g>) in s, where g = df/dq.
    """

    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, teacher: torch.Tensor, divergence: str, beta: float
    ) -> torch.Tensor:
        log_q, log_p = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
        q, p = log_q.exp(), log_p.exp()
        if divergence == "forward-kl":
            values, slope = (p * (log_p - log_q)).sum(dim=-1), q - p
        elif divergence == "reverse-kl":
            ratio = log_q - log_p
            values = (q * ratio).sum(dim=-1)
            slope = q * (ratio - values[:, None])
        else:
            log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1.0 - beta))
            of_student = (q * (log_q - log_m)).sum(dim=-1)
            values = beta * (p * (log_p - log_m)).sum(dim=-1) + (1.0 - beta) * of_student
            slope = (1.0 - beta) * q * (log_q - log_m - of_student[:, None])
        ctx.save_for_backward(slope)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0][:, None], None, None, None
