"""What a stage may expect of the one before, and a resumed run of its checkpoint: differences are refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from vlmkit.config import task_overrides
from vlmkit.errors import ConfigError
from vlmkit.model.checkpoint import PROVENANCE_FILE, read_provenance
from vlmkit.model.tensors import TensorReader, tensor_hash
from vlmkit.processing.processor import Processor

DIFFERENCES = ("assembly", "template", "tokenizer", "pixel_limits")
"""What `init_allow` can name."""
RESUMABLE = ("optim", "schedule", "average", "precision")
"""What `resume_allow` can name: settings that can change in the middle of a run."""
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


def run_contract(config: DictConfig, *, precision: str) -> dict[str, dict[str, Any]]:
    """Settings that a resumed run must share with its checkpoint, by kind and by config key, as plain values.

    Args:
        config: Of the run.
        precision: Its name as the Trainer has it.
    """
    optim = _plain(config.optim, "optim")
    schedule = {key: optim.pop(key) for key in ("optim.schedule", "optim.warmup_ratio", "optim.min_lr_ratio")}
    if schedule["optim.schedule"] != "constant" or schedule["optim.warmup_ratio"]:
        schedule["trainer.max_steps"] = config.trainer.max_steps  # the schedule ends there
    averages = {
        name: node
        for name, node in config.callbacks.items()
        if node and str(node.get("_target_")).endswith(".WeightAverage")
    }
    return {
        "optim": {**optim, "trainer.gradient_clip_val": config.trainer.gradient_clip_val},
        "schedule": schedule,
        "average": {
            key: value for name, node in averages.items() for key, value in _plain(node, f"callbacks.{name}").items()
        },
        "precision": {"trainer.precision": precision},
        "lora": _plain(config.model.lora, "model.lora") if config.model.lora.rank else {"model.lora.rank": 0},
    }


def check_resumable(
    checkpoint: Path,
    held: Mapping[str, Mapping[str, Any]] | None,
    wanted: Mapping[str, Mapping[str, Any]],
    allowed: object,
) -> dict[str, list[str]]:
    """Compare the settings of a resumed run with those its checkpoint was trained with.

    Args:
        checkpoint: For messages.
        held: Its contract; None: it has none, so nothing is held against the run.
        wanted: The run's contract.
        allowed: `resume_allow`: differences that are to be applied; see `RESUMABLE`.

    Returns:
        By kind, the differences to be applied, in words.

    Raises:
        ConfigError: `resume_allow` names something else, or settings differ that it does not name or that cannot change.
    """
    if not isinstance(allowed, list) or any(kind not in RESUMABLE for kind in cast(list[object], allowed)):
        raise ConfigError(f"resume_allow={allowed}: wanted a list of some of {', '.join(RESUMABLE)}, such as [optim].")
    found = {kind: _changes(held.get(kind, {}), wanted[kind]) for kind in wanted} if held else {}
    found = {kind: changes for kind, changes in found.items() if changes}
    fixed = {kind: changes for kind, changes in found.items() if held and _is_fixed(kind, held[kind], wanted[kind])}
    refused = {kind: changes for kind, changes in found.items() if kind in fixed or kind not in allowed}
    if not refused:
        return found
    listed = "\n".join(f"  {kind}: {change}" for kind, changes in refused.items() for change in changes)
    if fixed:
        remedy = f"Set {' and '.join(fixed)} back: it cannot change within a run. Or start a new run with init_from."
    else:
        names = ",".join(sorted({*refused, *cast(list[str], allowed)}))
        remedy = f"Set them back, or have them applied from this checkpoint on: resume_allow=[{names}]."
    raise ConfigError(f"resume_from: {checkpoint} was trained with other settings:\n{listed}\n{remedy}")


def _plain(node: DictConfig, prefix: str) -> dict[str, Any]:
    settings = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    return {f"{prefix}.{name}": value for name, value in settings.items()}


def _changes(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    absent = object()
    return [
        f"{key}={'absent' if (new := wanted.get(key, absent)) is absent else new}, trained with was "
        f"{'none' if (old := held.get(key, absent)) is absent else old}"
        for key in [*wanted, *(key for key in held if key not in wanted)]
        if wanted.get(key, absent) != held.get(key, absent)
    ]


def _is_fixed(kind: str, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a difference of this kind is of what the checkpoint's tensors are, not of how they go on."""
    if kind == "precision":
        stored = {_STORED.get(str(settings.get("trainer.precision"))) for settings in (held, wanted)}
        return len(stored) > 1 or None in stored
    if kind == "optim":
        layered = {settings.get("optim.layer_decay", 1.0) < 1 for settings in (held, wanted)}  # other groups
        fixed = ("optim._target_", "optim.fp32_masters")
        same = all(held.get(key) == wanted.get(key) for key in fixed)
        made = [_targets(settings.get("optim.optimizer")) for settings in (held, wanted)]
        return len(layered) > 1 or not same or made[0] != made[1]
    return kind not in RESUMABLE


_STORED = {
    "32-true": "fp32",
    "bf16-mixed": "fp32",
    "16-mixed": "fp32",
    "bf16-true": "bf16",
    "16-true": "fp16",
    "64-true": "fp64",
}
"""Type that trained weights are stored in."""


def _targets(value: object) -> list[str]:
    """What makes an optimiser: every `_target_` in it, in order."""
    if isinstance(value, dict):
        nodes = cast(dict[str, object], value)
        own = [str(nodes["_target_"])] if "_target_" in nodes else []
        return own + [target for node in nodes.values() for target in _targets(node)]
    return (
        [target for node in cast(list[object], value) for target in _targets(node)] if isinstance(value, list) else []
    )
