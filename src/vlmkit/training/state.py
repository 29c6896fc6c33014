"""What a checkpoint says beyond weights: where in the plan it stands, and the random states."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch

from vlmkit.errors import CheckpointError

KEY = "vlmkit"
SCHEMA = "vlmkit.state/3"
READABLE = ("vlmkit.state/2", SCHEMA)
"""Before version 3 a checkpoint said nothing of the settings it was trained with."""
META_FILE = "meta.pt"
"""In a sharded checkpoint, which is a directory: what is not sharded."""
_NAME = re.compile(r"step-(\d+)\.ckpt")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands at the end of an optimiser step.

    Attributes:
        step: Optimiser steps done.
        consumed_packs: Packs of the plan trained on; what is left is dealt anew, on any number of ranks.
        plan_key: Hash of everything that determines the packs: another plan is refused.
        freeze: Frozen parts.
        contract: Settings that a resumed run must share, by kind and by config key, as plain values; None in checkpoints
            of older versions.
    """

    step: int
    consumed_packs: int
    plan_key: str
    freeze: dict[str, bool]
    contract: dict[str, dict[str, Any]] | None

    def to_checkpoint(self, rng: list[dict[str, Any]]) -> dict[str, Any]:
        """Plain values and tensors, so that it loads with `weights_only=True`.

        Args:
            rng: Random states of every rank, by rank; see `rng_state`.
        """
        return {"schema": SCHEMA, **asdict(self), "rng": rng}


def checkpoint_name(step: int) -> str:
    """`step-000006.ckpt`: no `=`, which Hydra could not parse as an override."""
    return f"step-{step:06d}.ckpt"


def find_checkpoint(resume_from: str, run_dir: Path) -> Path | None:
    """The checkpoint that `resume_from` means.

    Args:
        resume_from: `auto` (the newest of this run directory, or none), a run directory, or a checkpoint file.
        run_dir: Directory of this run.

    Raises:
        CheckpointError: a directory or file was named and holds no checkpoint.
    """
    if resume_from == "auto":
        return newest_checkpoint(run_dir)
    path = Path(resume_from)
    if path.is_file() or (path / META_FILE).is_file():
        return path
    if found := newest_checkpoint(path):
        return found
    raise CheckpointError(
        f"resume_from={resume_from}: no checkpoint there. Name a run directory with checkpoints/step-*.ckpt, such a file, "
        "or auto."
    )


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The finished checkpoint with the highest step."""
    found = finished_checkpoints(run_dir / "checkpoints")
    return found[-1] if found else None


def finished_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a directory by step, the lowest first; files still being written have another name."""
    steps = {path: int(match[1]) for path in directory.glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))}
    return sorted(steps, key=lambda path: steps[path])


def meta_file(path: Path) -> Path:
    """The file of a checkpoint, sharded or not, that says where it stands."""
    return path / META_FILE if path.is_dir() else path


def read_content(path: Path, *, mmap: bool = True) -> dict[str, Any]:
    """What a file of a checkpoint holds: plain values and tensors. No code that the file holds is run.

    Args:
        path: File that `torch.save` wrote.
        mmap: Whether tensors stay on the disk until they are used.

    Raises:
        CheckpointError: unreadable, or it holds other Python objects than plain values and tensors.
    """
    try:
        content: object = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except UnpicklingError as error:
        raise refused_objects(path, error) from error
    except Exception as error:  # a damaged file can raise anything
        raise unreadable(path, error) from error
    if not isinstance(content, dict):
        raise unreadable(path, TypeError(f"it holds a {type(content).__name__}"))
    return cast(dict[str, Any], content)


def refused_objects(path: Path, error: BaseException) -> CheckpointError:
    """The error of a file that may hold code, in words."""
    return CheckpointError(
        f"{path}: not loaded, because it holds other Python objects than plain values and tensors, and loading such "
        f"objects can run code ({_first_line(error)}). vlmkit writes no such file. Use another checkpoint."
    )


def unreadable(path: Path, error: BaseException) -> CheckpointError:
    """The error of a damaged file, in words."""
    return CheckpointError(
        f"{path}: not a readable checkpoint ({_first_line(error)}). It may be damaged. Use an older one."
    )


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


def read_state(path: Path) -> RunState:
    """Read where a checkpoint stands, without reading its tensors into memory.

    Raises:
        CheckpointError: unreadable, or written by another version.
    """
    content = read_content(meta_file(path)).get(KEY)
    state = cast(Mapping[str, Any], content if isinstance(content, dict) else {})
    if state.get("schema") not in READABLE:
        raise CheckpointError(
            f"{path}: its state is {state.get('schema')!r}, this version reads {' and '.join(READABLE)}. Train it with the version that wrote it."
        )
    known: dict[str, Any] = {name: state[name] for name in RunState.__dataclass_fields__ if name in state}
    known.setdefault("contract", None)
    return RunState(**known)


def rng_state() -> dict[str, Any]:
    """The random states of this process: Python's, numpy's, torch's, and the device's where there is one."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()  # pyright: ignore[reportAssignmentType]  # the legacy tuple
    return {
        "python": [version, list(internal), gauss],
        "numpy": [np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_rng_state(rng: Mapping[str, Any]) -> None:
    """Go on drawing where `rng_state` was taken."""
    version, internal, gauss = rng["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(("MT19937", np.array(rng["numpy"][0], dtype=np.uint32), *rng["numpy"][1:]))
    torch.set_rng_state(rng["torch"])
    if rng["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(rng["cuda"])


def restore_rng(checkpoint: Mapping[str, Any], *, rank: int, num_ranks: int) -> None:
    """Set the random states that a checkpoint keeps.

    On as many ranks as wrote it, each goes on where it was. On another number there is no such place: each rank starts
    from seeds of its own, which depend on the step and the rank, so that no two draw alike and a repetition draws the same.
    """
    state = checkpoint[KEY]
    if len(state["rng"]) == num_ranks:
        set_rng_state(state["rng"][rank])
        return
    seeds = np.random.SeedSequence([int(state["step"]), num_ranks, rank]).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.manual_seed(int(seeds[2]))


def rewrite_loops(checkpoint: dict[str, Any], *, done_batches: int) -> None:
    """Set Lightning's counters to the number of micro-batches done *as counted on today's ranks*.

    Lightning continues an epoch at the batch it counted, and the count of another number of ranks would be wrong. The
    counters stand as they do while `on_train_batch_end` runs, which is where our checkpoints are written.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for scope in ("total", "current"):
        progress[scope].update(
            ready=done_batches, started=done_batches, processed=done_batches, completed=done_batches - 1
        )
    progress["is_last_batch"] = False
