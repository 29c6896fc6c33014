"""The model that a command works with: `ckpt=` and `init_from=` as a Hugging Face directory, exported where it is none yet."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from vlmkit.errors import CheckpointError

EXPORT_WAIT_SECONDS = 1800.0
"""How long other processes wait for the first one's export."""
_STEP = re.compile(r"(?:hf_)?step-(\d+)(?:\.ckpt)?")


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a model is.

    Attributes:
        directory: The Hugging Face directory; of a checkpoint, where it is exported.
        checkpoint: The training checkpoint; None: the directory is a model already.
    """

    directory: Path
    checkpoint: Path | None


def locate_model(place: str | Path, *, key: str) -> Location:
    """Find the model that `ckpt=` or `init_from=` names; nothing is loaded.

    Of a run this is `hf/`; of an unfinished run the newest of its checkpoints and its exports of single steps.

    Args:
        place: A run directory, a `.ckpt` file, a sharded checkpoint (a directory named like such a file) or a Hugging
            Face directory.
        key: The setting, for messages.

    Raises:
        CheckpointError: there is no model.
    """
    path = Path(place).expanduser()
    if _is_model(path):
        return Location(directory=path, checkpoint=None)
    if path.is_dir() and _is_model(path / "hf"):
        return Location(directory=path / "hf", checkpoint=None)
    folder = path / "checkpoints"
    checkpoints, exports = _by_step(folder, "step-*.ckpt"), _by_step(folder, "hf_step-*")
    exports = {step: export for step, export in exports.items() if _is_model(export)}
    if checkpoints and max(checkpoints) >= max(exports, default=-1):
        return _of_checkpoint(checkpoints[max(checkpoints)])
    if exports:
        return Location(directory=exports[max(exports)], checkpoint=None)
    if path.suffix == ".ckpt" and path.exists():
        return _of_checkpoint(path)
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{key}={place}: adapters without their model. Name the run or its checkpoint, or export it with lora=merged."
        )
    raise CheckpointError(
        f"{key}={place}: no model there. Name a run directory, a checkpoint of one (RUN/checkpoints/step-N.ckpt) or a "
        "Hugging Face directory."
    )


def locate_checkpoint(place: str | Path) -> Location:
    """Find what `vlmkit-export` is to export: of a run the newest checkpoint, where it has any, even if it is finished.

    Raises:
        CheckpointError: there is no model.
    """
    checkpoints = _by_step(Path(place).expanduser() / "checkpoints", "step-*.ckpt")
    return _of_checkpoint(checkpoints[max(checkpoints)]) if checkpoints else locate_model(place, key="ckpt")


def model_directory(config: DictConfig, *, assembled: Path) -> Path:
    """The Hugging Face directory to ask; without `ckpt`, the model the config assembles.

    Args:
        config: With `ckpt` and the group `model`.
        assembled: Where a model goes that is made for the occasion.

    Raises:
        CheckpointError: there is none.
    """
    if config.ckpt is None:
        return _assembled(config, assembled)
    return exported(locate_model(config.ckpt, key="ckpt"), otherwise=assembled)


def exported(location: Location, *, otherwise: Path) -> Path:
    """The Hugging Face directory of a model; a checkpoint is exported beside itself, once.

    Of several processes the first one exports, and the others wait for it.

    Args:
        location: See `locate_model`.
        otherwise: Where the export goes if nothing can be written beside the checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be exported.
    """
    checkpoint, directory = location.checkpoint, location.directory
    if checkpoint is None:
        return directory
    if not os.access(directory.parent, os.W_OK):
        directory = otherwise
    if _is_current(directory, checkpoint):
        return directory
    if not is_first_process(os.environ):
        _await_export(directory, checkpoint)
        return directory
    from vlmkit.cli.exporting import export_checkpoint
    from vlmkit.cli.quiet import hush

    hush()
    export_checkpoint(checkpoint, directory)
    print(f"{checkpoint}: exported to {directory}.")
    return directory


def is_first_process(environment: Mapping[str, str]) -> bool:
    """Whether this process has rank 0, as torchrun, srun or Lightning say it."""
    return not any(int(environment.get(key) or 0) for key in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def _of_checkpoint(path: Path) -> Location:
    return Location(directory=path.with_name(f"hf_{path.stem}"), checkpoint=path)


def _by_step(folder: Path, pattern: str) -> dict[int, Path]:
    return {int(match[1]): path for path in folder.glob(pattern) if (match := _STEP.fullmatch(path.name))}


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() and not (path / "config.yaml").is_file()


def _is_current(directory: Path, checkpoint: Path) -> bool:
    """Whether a directory was exported after a checkpoint was written: a resumed run may have replaced it."""
    provenance = directory / "vlmkit.json"
    return provenance.is_file() and provenance.stat().st_mtime >= checkpoint.stat().st_mtime


def _await_export(directory: Path, checkpoint: Path) -> None:
    deadline = time.monotonic() + EXPORT_WAIT_SECONDS
    while not _is_current(directory, checkpoint):
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{checkpoint}: the first process has not exported it to {directory} within {EXPORT_WAIT_SECONDS:.0f} s. "
                f"Export it first: vlmkit-export ckpt={checkpoint} out=DIR, then ckpt=DIR."
            )
        time.sleep(0.5)


def _assembled(config: DictConfig, directory: Path) -> Path:
    import torch

    from vlmkit.cli.training import model_source
    from vlmkit.model.checkpoint import save_hf
    from vlmkit.processing.processor import load_processor

    source = model_source(config.model)
    vlm = source.build(dtype=torch.float32)
    print(f"No ckpt given: the model as assembled, untrained, in {directory}.")
    processor = load_processor(source.processor_source)
    return save_hf(model=vlm.model, processor=processor, directory=directory, provenance=vlm.provenance)
