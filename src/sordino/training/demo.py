"""`sordino demo`: the main job on the embedded model and the embedded movie reviews."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typing_extensions import Doc

from sordino.data import write_demo_data
from sordino.ledger.certificate_words import describe_certificate
from sordino.training.loop import read_metrics
from sordino.training.run_folder import RunFolder
from sordino.training.tune import tune
from sordino.training.verify import verify

if TYPE_CHECKING:
    from sordino.ledger.certificate import Certificate

MODEL = "embedded"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo measured and made."""

    run: Path
    num_train: int
    num_heldout: int
    accuracy_before: float
    accuracy_after: float
    seconds: float
    is_verified: bool
    certificate: Certificate

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return asdict(self) | {"run": str(self.run)}

    def lines(self) -> list[str]:
        """Returns the result in words."""
        rise = 100 * (self.accuracy_after - self.accuracy_before)
        return [
            (
                f"Accuracy on {self.num_heldout} held-out snippets: {self.accuracy_before:.1%} "
                f"before, {self.accuracy_after:.1%} after ({rise:+.1f} points), in "
                f"{self.seconds:.0f} s."
            ),
            "",
            "Certificate:",
            *[f"  {line}" for line in describe_certificate(self.certificate)],
            "",
            "Verified: chain, certificate and replayed weights agree."
            if self.is_verified
            else "NOT verified.",
            f"The run lies in {self.run}. Check it: sordino verify {self.run} --model {MODEL}",
        ]


def demo(
    *,
    output: Annotated[Path, Doc("Folder for the data and the run.")] = Path("runs/demo"),
    num_train: Annotated[int, Doc("Movie-review snippets in the private pool.")] = 1000,
    num_heldout: Annotated[int, Doc("Held-out snippets, scored before and after.")] = 400,
    num_steps: Annotated[int, Doc("Backward passes over the pool.")] = 3,
    resume: Annotated[
        bool, Doc("Continue an interrupted demo; repeat its other settings.")
    ] = False,
) -> DemoResult:
    """Tunes SmolLM2-135M on movie reviews at zero mutual information, and checks the result.

    Returns:
        Accuracy before and after on held-out snippets, and the certificate.

    Example:
        sordino demo --output runs/demo
    """
    output = Path(output)
    run = RunFolder(output / "run")
    if not resume:
        run.require_new()
    began = time.monotonic()
    train, heldout = write_demo_data(output, num_train, num_heldout)
    result = tune(
        model=MODEL,
        train=train,
        validation=heldout,
        validation_is_public=True,
        output=run.path,
        estimator="first-order",
        num_steps=num_steps,
        lora_first_layer=15,
        evaluate_every=num_steps,
        resume=resume,
    )
    seconds = time.monotonic() - began
    before, after = (entry["accuracy"] for entry in read_metrics(run, num_steps))
    return DemoResult(
        run=run.path,
        num_train=num_train,
        num_heldout=num_heldout,
        accuracy_before=before,
        accuracy_after=after,
        seconds=seconds,
        is_verified=verify(run.path).is_valid,
        certificate=result.certificate,
    )
