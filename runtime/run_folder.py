"""The folder of a training: what it was asked for, its checkpoints, its log, its result.

OUT/training.json     what was asked for: model, data (with digests) and settings
    tokens.bin        the text, int32, where one is trained on
    checkpoints/      checkpoint-STEP; one without a file `complete`, which has digests of the others, was not
                      finished
    steps.jsonl       figures of each step
    tensorboard/      the same, when it is installed
    model/            the trained model; it appears when it is whole
    report.json       what came of it
    training.png
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runtime.errors import ConflictError, FormatError, UsageError
from runtime.step_log import read_records

COMPLETE = "complete"
DIGESTS = "text_digests"
"""Name, in a request, of the digests of the text's files."""


class RunFolder:
    """Paths of a training's folder, and which of its checkpoints are whole."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.request = out / "training.json"
        self.tokens = out / "tokens.bin"
        self.checkpoints = out / "checkpoints"
        self.log = out / "steps.jsonl"
        self.tensorboard = out / "tensorboard"
        self.model = out / "model"
        self.report = out / "report.json"
        self.picture = out / "training.png"

    def finish_checkpoint(self, step: int, keep: int) -> None:
        """Mark a checkpoint as whole, and remove the oldest ones beyond `keep`."""
        folder = self.checkpoint(step)
        for path in folder.iterdir():
            _make_durable(path)
        write_json(folder / COMPLETE, {path.name: _digest(path) for path in sorted(folder.iterdir())})
        _make_durable(folder)
        _make_durable(self.checkpoints)
        for old in self.complete_steps()[:-keep]:
            # Without its mark first: half of a checkpoint must not look whole.
            (self.checkpoint(old) / COMPLETE).unlink()
            shutil.rmtree(self.checkpoint(old))

    def last_step(self) -> int | None:
        """Step of the last checkpoint that is whole; None without one."""
        steps = self.complete_steps()
        return steps[-1] if steps else None

    def verify(self, step: int) -> None:
        """Compare a checkpoint's files with what they were when it was finished.

        Raises:
            FormatError: one is missing, or damaged.
        """
        folder = self.checkpoint(step)
        if not (folder / COMPLETE).stat().st_size:
            return  # of a version that wrote down nothing
        for name, digest in read_json(folder / COMPLETE).items():
            path = folder / name
            if not path.is_file() or _digest(path) != digest:
                what = "damaged" if path.exists() else "missing"
                raise FormatError(f"{path} is {what}; remove its folder to go on from an earlier checkpoint")

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"checkpoint-{step}"

    @property
    def has_begun(self) -> bool:
        """Whether there is something that depends on the request: the text as tokens, a checkpoint, a report."""
        return self.tokens.exists() or self.report.exists() or bool(self.complete_steps())

    @property
    def has_stepped(self) -> bool:
        """Whether a step was taken."""
        return any(record["step"] > 0 for record in read_records(self.log))

    def remove(self) -> None:
        """Remove what a training wrote before its first step, and nothing else."""
        for path in (self.request, self.tokens, self.log):
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".partial").unlink(missing_ok=True)
        for folder in (self.checkpoints, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)

    def complete_steps(self) -> list[int]:
        """Steps of the checkpoints that are whole, ascending."""
        return sorted(int(path.parent.name.split("-")[1]) for path in self._marks())

    def remove_incomplete(self) -> None:
        """Remove what a killed process left of a checkpoint."""
        whole = {path.parent for path in self._marks()}
        for path in self.checkpoints.glob("checkpoint-*"):
            if path not in whole:
                shutil.rmtree(path)

    def _marks(self) -> list[Path]:
        return list(self.checkpoints.glob(f"checkpoint-*/{COMPLETE}"))


@contextmanager
def open_run(out: Path, request: dict[str, Any], resume: bool, leads: bool = True) -> Iterator[RunFolder]:
    """The folder of a training, new or to go on in, for this process alone.

    A training that ends by an error before its first step takes with it what it made, so that the same command can
    be given again, mended.

    Args:
        request: all that the result depends on, as JSON has it.
        resume: go on in a folder that is there; without one, start.
        leads: whether this process opens it, for all that train together; the others are told where things are.

    Raises:
        ConflictError: the folder is there, not empty, and `resume` is not given, or another process works in it.
        UsageError: the folder is of another request, and says which, or the text has changed.
        FormatError: it is no folder of a training.
    """
    run = RunFolder(out)
    if not leads:
        yield run
        return
    existed = out.exists()
    empty = out.is_dir() and not any(out.iterdir())
    if existed and not empty and not resume:
        raise ConflictError(f"{out} exists already; go on with --resume, or give the name of a new folder")
    if existed and not empty and not run.request.exists():
        raise FormatError(f"{out} is no folder of a training (it has no training.json); give another name")
    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"{out} is being trained in by another process; wait until it is done"
            ) from None
        if run.request.exists() and run.has_begun:
            require_same(run.request, request)
            run.remove_incomplete()
            yield run
            return
        try:
            write_json(run.request, request)
            run.remove_incomplete()
            yield run
        except BaseException:
            if not run.has_stepped:
                run.remove()
                if not existed:
                    with suppress(OSError):  # something else is in it
                        out.rmdir()
            raise
    finally:
        os.close(lock)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file that appears when it is whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    _make_durable(partial)
    partial.rename(path)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        FormatError: it is something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise FormatError(f"{path} is no file of a training; give another folder")
    return value


def require_same(path: Path, request: dict[str, Any]) -> None:
    """Compare what is asked for with what was, in a file of `write_json`.

    Raises:
        UsageError: they differ; says where.
    """
    before = read_json(path)
    now = json.loads(json.dumps(request))
    # Those too that are there no more: a part that was left out is named by none of its settings.
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed == [DIGESTS]:
        raise UsageError(
            f"the text has changed since {path.parent} was started; give it as it was, or the name of a new folder"
        )
    changed = [name for name in changed if name != DIGESTS]
    if changed:
        was = ", ".join(f"{name} {before.get(name)!r}" for name in changed)
        asked = ", ".join(f"{name} {now.get(name)!r}" for name in changed)
        raise UsageError(
            f"{path.parent} was started with {was}, and is asked to go on with {asked}; give the same options"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
