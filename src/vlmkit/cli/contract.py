"""What a stage may expect of the one before: `init_from` is held against what its `vlmkit.json` says of itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vlmkit.config import task_overrides
from vlmkit.errors import ConfigError
from vlmkit.model.checkpoint import PROVENANCE_FILE, read_provenance
from vlmkit.model.tensors import TensorReader, tensor_hash
from vlmkit.processing.processor import Processor

DIFFERENCES = ("assembly", "template", "tokenizer", "pixel_limits")
"""What `init_allow` can name."""
_HASHED_BYTES = 2**24
"""Tensors up to this size are read again to see that they are those the file tells of; of larger ones only the names."""


def check_allowed(names: object) -> None:
    """Refuse an `init_allow` that allows nothing known.

    Raises:
        ConfigError: it is no list, or holds another word.
    """
    found = names if isinstance(names, list) else None
    if found is None or any(name not in DIFFERENCES for name in found):
        raise ConfigError(
            f"init_allow={names}: wanted a list of some of {', '.join(DIFFERENCES)}, such as [pixel_limits]."
        )


def check_assembly(saved: DictConfig, settings: Iterable[str]) -> None:
    """Refuse settings of the assembly on the command line that are not those of the run that is gone on with.

    Args:
        saved: `model` of that run.
        settings: Of `model`, those that concern training and may change.

    Raises:
        ConfigError: one would be ignored.
    """
    for override in task_overrides():
        key, _, value = override.lstrip("+").partition("=")
        name = key.removeprefix("model.")
        if name == key or name.split(".")[0] in {*settings, "processor"}:
            continue
        wanted = OmegaConf.select(OmegaConf.from_dotlist([f"value={value}"]), "value")
        had = OmegaConf.select(saved, name)
        if wanted != had:
            raise ConfigError(
                f"init_from: the model is the one that was trained, assembled with model.{name}={had}; {key}={value} would "
                f"assemble another. Leave it out, or start without init_from."
            )


def check_contract(directory: Path, processor: Processor, allowed: Iterable[str]) -> list[str]:
    """Compare a directory's tensors, and the processor that will be used, with what its `vlmkit.json` says.

    Args:
        directory: Hugging Face directory; without `vlmkit.json` nothing is promised, so nothing is held against it.
        processor: As this run will use it.
        allowed: Differences that are wanted; see `DIFFERENCES`.

    Returns:
        The wanted differences that there are, in words.

    Raises:
        ConfigError: other differences, all of them, each with what was found, what was expected and what to do.
    """
    told = read_provenance(directory)
    if told is None:
        return []
    found = {
        "assembly": _unequal_tensors(directory, told["tensors"]),
        "template": _unequal("chat template", told["template"], processor.template_hash, "model.processor"),
        "tokenizer": _unequal("tokenizer", told.get("tokenizer"), processor.tokenizer_hash, "model.processor"),
        "pixel_limits": _unequal_limits(told, processor),
    }
    found = {kind: finding for kind, finding in found.items() if finding}
    allowed = list(allowed)
    refused = {kind: finding for kind, finding in found.items() if kind not in allowed}
    if refused:
        listed = "\n".join(f"  {kind}: {finding}" for kind, finding in refused.items())
        raise ConfigError(
            f"init_from: this run differs from what {directory / PROVENANCE_FILE} says the model was trained with:\n{listed}\n"
            f"Where that is wanted, say so: init_allow=[{','.join(sorted({*refused, *allowed}))}]."
        )
    return list(found.values())


def _unequal_tensors(directory: Path, told: dict[str, str]) -> str:
    reader = TensorReader(directory)
    if unequal := sorted(set(told) ^ set(reader.names)):
        return (
            f"{len(unequal)} tensors stand in the files or in {PROVENANCE_FILE} only (first: {unequal[0]}). The weights were "
            "exchanged after training: export them again with vlmkit, or delete vlmkit.json."
        )
    for name in reader.names:
        if reader.num_bytes(name) <= _HASHED_BYTES and tensor_hash(reader.read(name)) != told[name]:
            return f"tensor {name} is not the one that was written. The weights were exchanged after training."
    return ""


def _unequal(what: str, told: str | None, found: str, key: str) -> str:
    if told is None or told == found:
        return ""
    return (
        f"the {what} has hash {found[:12]}, trained with was {told[:12]}. Set {key} back to null, or put the directory's own "
        "files back."
    )


def _unequal_limits(told: dict[str, Any], processor: Processor) -> str:
    if "trained" not in told["provenance"]:
        return ""  # assembled, and never shown an image
    limits = processor.limits()
    changed = [name for name, value in told["pixel_limits"].items() if limits.get(name) != value]
    return ", ".join(
        f"data.{name}={limits.get(name)}, trained with was {told['pixel_limits'][name]}" for name in changed
    )
