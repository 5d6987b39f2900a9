"""The loss is the divergence on what the student wrote, and its gradient is the student's alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helpers_tiny_models import END, VOCABULARY, make_examples, make_model, named_parameters
from sordino.core.errors import InvalidParameterError
from sordino.data.tasks import Example
from sordino.gradients import distillation
from sordino.gradients.clipped import ClippedGradients
from sordino.gradients.distillation import (
    DIVERGENCES,
    DistillationObjective,
    DistillationSettings,
    divergences,
    sample_continuations,
    secret_generator,
)
from sordino.gradients.objectives import LanguageModel
from sordino.training.gradient_steps import PlainSum

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPTS = [Example(e.input_ids) for e in make_examples("classification", [5, 12, 2, 9, 1, 3])]
EVERYBODY = range(len(PROMPTS))
# chosen texts: the end token ends some, stands in no prompt's place, and is missing in others
WRITTEN = [[3, 7, END], [4], [9, 9, 9, 9], [END], [1, 2, 3, 4, 5], [8, END]]
BETA = 0.3


def student_and_teacher(name: str = "llama", **changes: Any) -> tuple[Any, Any]:
    return make_model(name, seed=1), make_model("llama", seed=2, hidden_size=24, **changes)


def make_objective(
    teacher: Any, divergence: str = "reverse-kl", prompts: Sequence[Example] = PROMPTS
) -> DistillationObjective:
    settings = DistillationSettings(max_new_tokens=5, divergence=divergence, beta=BETA)
    return DistillationObjective(prompts, LanguageModel(teacher, END), settings, end_token_id=END)


def naive_divergence(student: torch.Tensor, teacher: torch.Tensor, divergence: str) -> torch.Tensor:
    """Returns the divergence of one pair of logits, by its definition."""
    q, p = student.softmax(-1), teacher.softmax(-1)
    m = BETA * p + (1 - BETA) * q

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a.log() - b.log())).sum()

    if divergence == "jensen-shannon":
        return BETA * kl(p, m) + (1 - BETA) * kl(q, m)
    return kl(q, p) if divergence == "reverse-kl" else kl(p, q)


def naive_loss(
    student: Any, teacher: Any, prompt: list[int], written: list[int], divergence: str
) -> torch.Tensor:
    """Returns one record's loss, token by token, each from a forward pass of its own."""
    losses = []
    for end in range(len(prompt), len(prompt) + len(written)):
        ids = torch.tensor([(prompt + written)[:end]])
        with torch.no_grad():
            seen = teacher(input_ids=ids).logits[0, -1, :VOCABULARY]
        losses.append(naive_divergence(student(input_ids=ids).logits[0, -1], seen, divergence))
    return torch.stack(losses).mean()


@pytest.fixture
def fixed_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student writes WRITTEN, whatever it thinks."""
    by_prompt = {tuple(e.input_ids): text for e, text in zip(PROMPTS, WRITTEN, strict=True)}

    def write(_model: Any, prompts: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        return [by_prompt[tuple(prompt)] for prompt in prompts]

    monkeypatch.setattr(distillation, "sample_continuations", write)


# ------------------------------------------------------------------------------- divergences


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_and_gradient_are_those_of_the_definition(divergence: str) -> None:
    """In float64, to 1e-12, also far from each other; and by finite differences."""
    generator = torch.Generator().manual_seed(0)
    student = 4 * torch.randn(6, 11, generator=generator, dtype=torch.float64)
    teacher = 4 * torch.randn(6, 11, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    found = divergences(student, teacher, divergence, beta=BETA)
    expected = torch.stack(
        [naive_divergence(s, t, divergence) for s, t in zip(student, teacher, strict=True)]
    )
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    gradients = [torch.autograd.grad((weights * f).sum(), student)[0] for f in (found, expected)]
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-13)
    assert torch.autograd.gradcheck(
        lambda s: divergences(s, teacher, divergence, beta=BETA), student
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_distributions_diverge_by_nothing(divergence: str) -> None:
    """A shift of all logits is no difference; improbable tokens give no NaN."""
    logits = torch.tensor([[0.0, 3.0, -1.0], [0.0, 1e4, -1e4]], requires_grad=True)
    found = divergences(logits, logits.detach() + 2.0, divergence, beta=BETA)
    assert torch.allclose(found, torch.zeros(2), atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.allclose(gradient, torch.zeros(2, 3), atol=1e-6)


def test_opposite_certainties_stay_finite() -> None:
    """Jensen-Shannon is bounded where the others are large."""
    student, teacher = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])
    found = [float(divergences(student, teacher, d, beta=0.5)) for d in DIVERGENCES]
    assert found == pytest.approx([60.0, 60.0, math.log(2)], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"beta": 0.0}, "beta"),
        ({"beta": 1.0}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"divergence": "hellinger"}, "divergence"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        DistillationSettings(**changes)
    with pytest.raises(InvalidParameterError, match="divergence"):
        divergences(torch.zeros(1, 2), torch.zeros(1, 2), "hellinger", beta=0.5)


# ------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.usefixtures("fixed_texts")
def test_loss_is_the_mean_over_what_was_written(name: str, divergence: str) -> None:
    """Token by token, nothing after the end token, padded prompts of unequal length."""
    student, teacher = student_and_teacher(name)
    objective, model = make_objective(teacher, divergence), LanguageModel(student, END)
    with torch.no_grad():
        objective.prepare(model, EVERYBODY)
        found = objective.losses(model, EVERYBODY)
        expected = [
            naive_loss(student.double(), teacher.double(), e.input_ids, w, divergence)
            for e, w in zip(PROMPTS, WRITTEN, strict=True)
        ]
    assert torch.allclose(found.double(), torch.stack(expected), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["materialised", "book-keeping"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.usefixtures("fixed_texts")
def test_clipped_sums_are_those_of_each_record_alone(name: str, method: str) -> None:
    """Each record's gradient is autograd's, from a loss computed the plain way, then clipped."""
    student, teacher = student_and_teacher(name)
    tensors = named_parameters(student)
    for parameter in tensors.values():
        parameter.requires_grad_(requires_grad=True)
    rows = []
    for example, written in zip(PROMPTS, WRITTEN, strict=True):
        loss = naive_loss(student, teacher, example.input_ids, written, "reverse-kl")
        found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
        pairs = zip(tensors.values(), found, strict=True)
        rows.append(
            torch.cat([torch.zeros_like(p).ravel() if g is None else g.ravel() for p, g in pairs])
        )
    for parameter in tensors.values():
        parameter.requires_grad_(requires_grad=False)
    gradients = torch.stack(rows).double()
    norms = gradients.norm(dim=1, keepdim=True)
    clip_norm = float(norms.median())
    expected = (gradients * (clip_norm / norms).clamp(max=1.0)).sum(dim=0)
    clipped = ClippedGradients(
        LanguageModel(student, END),
        make_objective(teacher),
        tensors,
        clip_norm=clip_norm,
        method=method,
    )
    for batches in ([EVERYBODY], [[i] for i in EVERYBODY]):  # with neighbors and alone
        total = clipped.zeros()
        for batch in batches:
            clipped.add_batch(total, list(batch))
        found = torch.cat([values.ravel() for values in total.values()]).double()
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())


@pytest.mark.usefixtures("fixed_texts")
def test_logits_are_formed_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk size is for memory only; a chunk may hold some records and parts of others."""
    student, teacher = student_and_teacher()
    sums = []
    for rows in (2048, 3):
        monkeypatch.setattr(distillation, "LOGIT_ROWS_AT_ONCE", rows)
        clipped = ClippedGradients(
            LanguageModel(student, END),
            make_objective(teacher),
            named_parameters(student),
            clip_norm=0.5,
            method="book-keeping",
        )
        total = clipped.zeros()
        clipped.add_batch(total, list(EVERYBODY))
        sums.append(torch.cat([values.ravel() for values in total.values()]))
    assert torch.allclose(*sums, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("fixed_texts")
def test_a_loss_does_not_depend_on_its_neighbors() -> None:
    """Given its continuation, a record's loss is the same alone, in company, and in any order."""
    student, teacher = student_and_teacher()
    objective, model = make_objective(teacher), LanguageModel(student, END)

    @torch.no_grad()
    def losses(batch: Sequence[int]) -> torch.Tensor:
        objective.prepare(model, batch)
        return objective.losses(model, batch)

    together = losses(EVERYBODY)
    backwards = losses(EVERYBODY[::-1]).flip(0)
    alone = torch.cat([losses([i]) for i in EVERYBODY])
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-7)
    assert torch.allclose(together, backwards, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("fixed_texts")
def test_the_teacher_gets_no_gradient() -> None:
    """Not even if its weights could have one."""
    student, teacher = student_and_teacher()
    student.requires_grad_(requires_grad=True)
    teacher.requires_grad_(requires_grad=True)
    objective, model = make_objective(teacher), LanguageModel(student, END)
    objective.prepare(model, EVERYBODY)
    loss = objective.losses(model, EVERYBODY).sum()
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(loss, list(teacher.parameters()), retain_graph=True)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(bool(p.grad.any()) for p in student.parameters() if p.grad is not None)


def test_losses_need_the_rollouts_of_the_same_records() -> None:
    """Defect: gradients on what was written for the batch before."""
    student, teacher = student_and_teacher()
    objective, model = make_objective(teacher), LanguageModel(student, END)
    with pytest.raises(RuntimeError, match="prepare"):
        objective.losses(model, [0, 1])
    objective.prepare(model, [0, 1])
    with pytest.raises(RuntimeError, match="prepare"):
        objective.losses(model, [1, 0])


def test_a_teacher_padded_to_more_tokens_is_cut() -> None:
    """Models of one tokenizer may embed different numbers of tokens; the common ones count."""
    student, teacher = student_and_teacher(vocab_size=VOCABULARY + 8)
    for one, other in ((student, teacher), (teacher, student)):
        objective, model = make_objective(other), LanguageModel(one, END)
        objective.prepare(model, EVERYBODY)
        assert objective.losses(model, EVERYBODY).shape == (len(PROMPTS),)
        assert int(objective.rollouts.input_ids.max()) < VOCABULARY


# ---------------------------------------------------------------------------------- sampling


def sample(
    model: Any, prompts: Sequence[Sequence[int]], seed: int = 0, **changes: Any
) -> list[list[int]]:
    settings = {"end_token_id": END, "num_tokens": VOCABULARY} | changes
    options = settings.pop("options", DistillationSettings(max_new_tokens=6))
    generator = torch.Generator().manual_seed(seed)
    return sample_continuations(
        LanguageModel(model, END), prompts, options, generator=generator, **settings
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_samples_follow_the_model(name: str, temperature: float) -> None:
    """First and second token, after prompts of two lengths, as often as they are probable.

    The stream is fixed, so the test cannot fail by chance.
    """
    model = make_model(name)
    prompts = [[3, 8, 2, 5], [7]]
    options = DistillationSettings(max_new_tokens=2, temperature=temperature)
    count = 3000
    texts = sample(model, prompts * count, options=options, end_token_id=None)
    for row, prompt in enumerate(prompts):
        mine = torch.tensor(texts[row::2])
        first = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
        found = torch.bincount(mine[:, 0], minlength=VOCABULARY) / count
        assert float((found - first).abs().max()) < 5 * 0.5 / math.sqrt(count)
        likeliest = int(first.argmax())
        after = mine[mine[:, 0] == likeliest, 1]
        second = model(torch.tensor([[*prompt, likeliest]])).logits[0, -1] / temperature
        found = torch.bincount(after, minlength=VOCABULARY) / len(after)
        assert float((found - second.softmax(-1)).abs().max()) < 5 * 0.5 / math.sqrt(len(after))


def test_texts_end_with_the_end_token() -> None:
    """Nothing stands behind it; without one, every text is as long as allowed."""
    model = make_model("llama")
    texts = sample(model, [[3, 8], [5]] * 200)
    lengths = {len(text) for text in texts}
    assert max(lengths) == 6
    assert len(lengths) > 1
    for text in texts:
        assert END not in text[:-1]
        assert text[-1] == END or len(text) == 6
    endless = sample(model, [[3, 8], [5]] * 200, end_token_id=None)
    assert {len(text) for text in endless} == {6}
    assert any(END in text[:-1] for text in endless)


def test_only_common_tokens_are_written() -> None:
    texts = sample(make_model("llama"), [[3]] * 100, num_tokens=10)
    assert max(max(text) for text in texts) < 10


def test_a_models_own_generation_settings_do_not_count() -> None:
    """Penalties and end tokens that come with a model would bend what it samples."""
    model = make_model("llama")
    plain = sample(model, [[3, 8], [5]] * 5)
    own = model.generation_config
    own.repetition_penalty, own.min_new_tokens, own.eos_token_id = 5.0, 6, [END, 4]
    assert sample(model, [[3, 8], [5]] * 5) == plain
    assert model.generation_config is own


def test_the_global_stream_is_neither_read_nor_moved() -> None:
    """Defect: rollouts that follow from torch.manual_seed. Two objectives differ under one seed."""
    student, teacher = student_and_teacher()
    model = LanguageModel(student, END)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        objective = make_objective(teacher)
        objective.prepare(model, EVERYBODY)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(objective.rollouts.continuations)
    assert found[0] != found[1]  # equal by chance: less than 1e-9
    objective.prepare(model, EVERYBODY)
    assert objective.rollouts.continuations != found[1]
    assert (
        secret_generator(torch.device("cpu")).initial_seed()
        != secret_generator(torch.device("cpu")).initial_seed()
    )


def test_texts_follow_the_student_as_it_learns() -> None:
    """On-policy: after a step, the next batch is written by the moved student."""
    student, teacher = student_and_teacher()
    student.lm_head.weight.data[:] = 0.0
    student.lm_head.weight.data[11] = 1.0
    hidden = LanguageModel(student, END).last_hidden_state(torch.tensor([[3]]))[0, 0]
    student.lm_head.weight.data[11] = 100.0 * hidden  # writes 11 after this prompt, always
    objective = make_objective(teacher, prompts=[Example([3])] * 4)
    sums = PlainSum(LanguageModel(student, END), objective, named_parameters(student))
    total = {name: torch.zeros_like(p) for name, p in named_parameters(student).items()}
    sums.add_batch(total, range(4))
    assert all(text[0] == 11 for text in objective.rollouts.continuations)
    student.lm_head.weight.data[12] = 200.0 * hidden
    sums.add_batch(total, range(4))
    assert all(text[0] == 12 for text in objective.rollouts.continuations)
