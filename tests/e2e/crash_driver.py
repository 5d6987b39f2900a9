"""A process that starts runs, kills them at chosen moments, and resumes them.

It loads PyTorch once and forks one child a run: `python crash_driver.py PLAN.json ANSWER.json`.
Each entry of the plan is one run folder with its settings and how to end it; the folders of the
killed run are copied before it is resumed, so that a test can look at both.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

torch.set_num_threads(1)

import sordino  # noqa: E402
from sordino.ledger import durable  # noqa: E402
from sordino.mechanisms.binary_channel import BinaryChannelMechanism  # noqa: E402
from sordino.models import load_model  # noqa: E402
from sordino.training import assembly, dp_plan, setup  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

KILLED = 99
FILE_EVENTS = ("os.remove", "os.rename", "os.mkdir", "os.rmdir")
HOW = ("before", "torn", "after")


class Killer:
    """Ends the process at one durable write, or at one change of a folder."""

    def __init__(self, root: Path, kind: str, number: int, end: Callable[[], None]) -> None:
        self.root, self.kind, self.number, self.end = str(root), kind, number, end
        self.writes = self.changes = 0
        self.write_at, self.replace_file = durable.write_at, durable.replace_file

    def install(self) -> None:
        """Puts itself in front of the durable writes of all modules and of folder changes."""
        ours = {self.write_at: self.on_write_at, self.replace_file: self.on_replace_file}
        for module in [m for name, m in sys.modules.items() if name.startswith("sordino")]:
            for name, value in list(vars(module).items()):
                if callable(value) and value in ours.keys():  # noqa: SIM118 - compares, not hashes
                    setattr(module, name, ours[value])
        sys.addaudithook(self.on_event)

    def on_write_at(self, path: Path, offset: int, content: bytes) -> None:
        """Writes, unless this is the moment."""
        self._write(
            lambda: self.write_at(path, offset, content),
            lambda: self.write_at(path, offset, content[: len(content) // 2]),
        )

    def on_replace_file(self, path: Path, content: bytes, *, mode: int = 0o644) -> None:
        """Replaces, unless this is the moment."""

        def half() -> None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            descriptor = os.open(path.with_name(f".{path.name}.new"), flags, mode)
            os.write(descriptor, content[: len(content) // 2])

        self._write(lambda: self.replace_file(path, content, mode=mode), half)

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Counts folder changes below the run's parent."""
        if event in FILE_EVENTS and str(arguments[0]).startswith(self.root):
            self.changes += 1
            if self.kind == "change" and self.changes == self.number:
                self.end()

    def _write(self, whole: Callable[[], None], half: Callable[[], Any]) -> None:
        """Counts one durable write; ends before, within or after it."""
        self.writes += 1
        is_now = self.writes == self.number
        if is_now and self.kind == "before":
            self.end()
        if is_now and self.kind == "torn":
            half()
            self.end()
        whole()
        if is_now and self.kind == "after":
            self.end()


def run_child(body: Callable[[], None], log: Path) -> int:
    """Starts `body` in a child process; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stderr = log.open("a")
        body()
        code = 0
    except BaseException:  # noqa: BLE001 - told to the test
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for(child: int) -> int:
    """Returns the exit code; minus the signal's number for a killed process."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tune(entry: dict[str, Any], *, resume: bool) -> None:
    """Runs `sordino.tune` as the entry says."""
    root = Path(entry["root"])
    sordino.tune(output=root / "run", resume=resume, **entry["settings"])


def spy_on_restored_state(path: Path) -> None:
    """Writes the private state that a resumed run continues with."""
    restore = BinaryChannelMechanism.restore

    def spy(self: BinaryChannelMechanism, state: dict[str, Any]) -> None:
        restore(self, state)
        path.write_text(json.dumps(self.private_state()))

    BinaryChannelMechanism.restore = spy  # type: ignore[method-assign]


def crash(entry: dict[str, Any]) -> int:
    """Starts a run and ends it as the entry says; returns its exit code."""
    root, kind = Path(entry["root"]), entry["kill"]

    def body() -> None:
        if kind != "moment":
            killer = Killer(root, kind, entry["number"], lambda: os._exit(KILLED))
            killer.install()
        tune(entry, resume=entry.get("resumed", False))

    child = run_child(body, root / "log")
    if kind == "moment":
        time.sleep(random.uniform(0.0, entry["seconds"]))  # noqa: S311 - when, not what
        os.kill(child, signal.SIGKILL)
    return wait_for(child)


def crash_and_resume(entry: dict[str, Any]) -> dict[str, Any]:
    """Kills a run once or more, copies what is left, resumes it; returns the exit codes."""
    root = Path(entry["root"])
    root.mkdir(parents=True)
    crashed = crash(entry)
    while crashed == 0 and entry["kill"] == "moment":  # too late: earlier
        shutil.rmtree(root)
        root.mkdir()
        entry["seconds"] /= 2
        crashed = crash(entry)
    for name in ("run", "run.private"):
        if (root / name).exists():
            shutil.copytree(root / name, root / "crashed" / name)
    if crashed == 0:
        return {"crashed": 0}

    def body() -> None:
        spy_on_restored_state(root / "restored.json")
        tune(entry, resume=True)

    return {"crashed": crashed, "resumed": wait_for(run_child(body, root / "log"))}


def sweep(entry: dict[str, Any]) -> dict[str, Any]:
    """Kills and resumes one run a moment, until a run outlives the last moment."""
    answers: dict[str, Any] = {}
    for number in itertools.count(1):
        root = f"{entry['root']}/{number}"
        answer = crash_and_resume(entry | {"number": number, "root": root})
        if answer["crashed"] == 0:
            break
        answers[root] = answer
    return answers


def repeat(entry: dict[str, Any]) -> dict[str, Any]:
    """Kills a run again and again, five writes further each time, and keeps its journals."""
    root = Path(entry["root"])
    root.mkdir(parents=True)
    codes: list[int] = []
    journals = []
    while len(codes) < entry["most"] and (not codes or codes[-1]):
        codes.append(crash(entry | {"number": 5, "resumed": bool(codes)}))
        journal = root / "run.private" / "journal.sealed"
        if journal.exists():
            journals.append(journal.read_text())
    return {"codes": codes, "journals": journals}


def contend(entry: dict[str, Any]) -> dict[str, Any]:
    """Stops a run in the middle, starts two more on its folder, then kills and resumes it."""
    root = Path(entry["root"])
    root.mkdir(parents=True)

    def stop_in_the_middle() -> None:
        stop = partial(os.kill, os.getpid(), signal.SIGSTOP)
        Killer(root, "after", entry["number"], stop).install()
        tune(entry, resume=False)

    first = run_child(stop_in_the_middle, root / "log")
    os.waitpid(first, os.WUNTRACED)
    before = {p.name: p.read_bytes().hex() for p in (root / "run").iterdir()}
    again = wait_for(run_child(lambda: tune(entry, resume=False), root / "again.log"))
    resumed = wait_for(run_child(lambda: tune(entry, resume=True), root / "resumed.log"))
    after = {p.name: p.read_bytes().hex() for p in (root / "run").iterdir()}
    os.kill(first, signal.SIGKILL)
    wait_for(first)
    third = wait_for(run_child(lambda: tune(entry, resume=True), root / "log"))
    codes = {"again": again, "resumed": resumed, "after the kill": third}
    return codes | {"is_untouched": before == after}


def race(entry: dict[str, Any]) -> dict[str, Any]:
    """Starts two new runs on one folder; the second is held until the first is done."""
    root = Path(entry["root"])
    root.mkdir(parents=True)
    checked, done = root / "checked", root / "done"

    def late() -> None:
        tune_module = sys.modules["sordino.training.tune"]
        read_records = tune_module.read_records

        def wait_and_read(*where: Any, **how: Any) -> Any:  # the folder was found to be new before
            checked.touch()
            while not done.exists():
                time.sleep(0.01)
            return read_records(*where, **how)

        tune_module.read_records = wait_and_read
        tune(entry, resume=False)

    second = run_child(late, root / "late.log")
    while not checked.exists():
        if os.waitpid(second, os.WNOHANG)[0]:
            return {"first": None, "second": "ended too early"}
        time.sleep(0.01)
    first = wait_for(run_child(lambda: tune(entry, resume=False), root / "log"))
    done.touch()
    return {"first": first, "second": wait_for(second)}


ACTIONS = {
    "crash": crash_and_resume,
    "sweep": sweep,
    "repeat": repeat,
    "contend": contend,
    "race": race,
}


def main() -> None:
    """Works through a plan."""
    plan, answer = Path(sys.argv[1]), Path(sys.argv[2])
    entries = json.loads(plan.read_text())
    sys.stderr = answer.with_suffix(".log").open("w")
    dp_plan.calibrate_noise_multiplier = lru_cache(dp_plan.calibrate_noise_multiplier)
    for name, entry in {str(e["settings"].get("guarantee")): e for e in entries}.items():
        # loads all modules, and finds the noise once for all
        tune(entry | {"root": str(answer.parent / f"warm-{name}")}, resume=False)
    loaded = load_model(entries[0]["settings"]["model"])
    setup.load_model = lambda *_args, **_kwargs: loaded  # each child has its own copy
    assembly._probe_numerics = lambda *_args, **_kwargs: None
    os.fsync = lambda _descriptor: None  # a killed process, not a lost machine
    results = {e["root"]: ACTIONS[e.get("action", "crash")](e) for e in entries}
    answer.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
