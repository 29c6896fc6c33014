"""Makes the model out of a checkpoint of a run, finished or not, and writes it: as plain weights, or as adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig
from torch import nn

from vlmkit.cli.training import EXPORT_DTYPES, export_dtype, make_lora, model_source, weights_dtype
from vlmkit.config import build, read_config, run_named_by, targets
from vlmkit.errors import CheckpointError, ConfigError
from vlmkit.model.adapters import save_adapter
from vlmkit.model.assembly import Assembly, WholeCheckpoint
from vlmkit.model.checkpoint import check_replaceable, prove_export, save_hf
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.lora import Lora, is_adapter, prove_merge
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.media import PixelBudget
from vlmkit.processing.processor import Processor, load_processor
from vlmkit.training.callbacks.average import WeightAverage
from vlmkit.training.callbacks.validator import FILE as VALIDATIONS
from vlmkit.training.callbacks.validator import Validator, is_improvement
from vlmkit.training.shards import gather_model, holds_averages, load_weights
from vlmkit.training.state import checkpoint_name, meta_file, newest_checkpoint, read_content, read_state
from vlmkit.training.steplines import read_lines

Weights = Literal["auto", "last", "average", "best"]


_TARGETS = {
    "model": {f"{each.__module__}.{each.__qualname__}" for each in (Assembly, WholeCheckpoint)}
    | {"vlmkit.demo.tiny_assembly"},
    "freeze": {f"{FreezePolicy.__module__}.{FreezePolicy.__qualname__}"},
}
"""What makes a model in the configs of vlmkit's runs."""


class _Holder(nn.Module):
    """Names the tensors of a model as checkpoints do."""

    def __init__(self, model: PackedVLM) -> None:
        super().__init__()
        self.model = model


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model as a checkpoint holds it.

    Attributes:
        hf: The stock model, with adapters where the run trains some.
        processor: Trained with it.
        lora: The adapters' settings.
        source: What the run started from.
        dtype: That an export has unless another is asked for.
        provenance: For `vlmkit.json`.
    """

    hf: Any
    processor: Processor
    lora: Lora | None
    source: Assembly | WholeCheckpoint
    dtype: torch.dtype
    provenance: dict[str, Any]


def export_checkpoint(
    checkpoint: Path, directory: Path, *, weights: Weights = "auto", dtype: str = "auto", adapter: bool = False
) -> Path:
    """Write the model of a checkpoint and prove what was written.

    Args:
        checkpoint: A file or a sharded checkpoint, in its run directory.
        directory: To write; only an export of vlmkit is replaced.
        weights: `auto` (what the run would export), `last` (the trained weights), `average` (their running average) or
            `best` (of the run's best checkpoint, as `auto`).
        dtype: Of the exported weights; `auto`: as the run exports.
        adapter: Write a LoRA run's adapters instead of merged weights.

    Returns:
        The directory.

    Raises:
        CheckpointError: the checkpoint cannot be read or has no such weights, or the export cannot be written.
        ConfigError: the run has no adapters.
    """
    check_replaceable(directory)
    if weights == "best":
        checkpoint = best_checkpoint(checkpoint)
    model = load_trained(checkpoint, weights=weights)
    lora, hf, chosen = model.lora, model.hf, EXPORT_DTYPES[dtype] or model.dtype
    if adapter:
        if lora is None:
            raise ConfigError(f"lora=adapter: {checkpoint} was trained without adapters. Use lora=merged.")
        published = model.source.path if isinstance(model.source, WholeCheckpoint) else None
        if any(parameter.requires_grad and not is_adapter(name) for name, parameter in hf.named_parameters()):
            published = None  # what else was trained is in no published checkpoint
        base: Any = published or gather_model(hf, merge=lora.base, dtype=chosen)
        return save_adapter(
            hf, lora=lora, processor=model.processor, directory=directory, base=base, provenance=model.provenance
        )
    plain = gather_model(hf, merge=lora.merge if lora else None, dtype=chosen)
    assert plain is not None
    if lora:
        prove_merge(hf, plain)
    directory = save_hf(model=plain, processor=model.processor, directory=directory, provenance=model.provenance)
    prove_export(directory, model=plain, processor=model.processor)
    return directory


def export_directory(source: Path, directory: Path, *, dtype: str) -> Path:
    """Write a Hugging Face directory again, in another type, and prove what was written.

    Raises:
        CheckpointError: it cannot be read or written.
        AssemblyError: it holds no model of a supported family.
    """
    check_replaceable(directory)
    checkpoint = WholeCheckpoint(path=source, processor=None)
    vlm = checkpoint.build(dtype=EXPORT_DTYPES[dtype] or checkpoint.stored_dtype())
    processor = load_processor(source)
    save_hf(model=vlm.model, processor=processor, directory=directory, provenance=vlm.provenance)
    prove_export(directory, model=vlm.model, processor=processor)
    return directory


def load_trained(checkpoint: Path, *, weights: Weights = "auto") -> TrainedModel:
    """The model of a checkpoint: as the run's config makes it, with the tensors that were trained.

    Raises:
        CheckpointError: the checkpoint cannot be read, is in no run directory, or has no such weights.
        ConfigError: the run's config would have code called that is not vlmkit's.
    """
    state = read_state(checkpoint)
    run_dir = run_named_by(checkpoint)
    if run_dir is None:
        raise CheckpointError(
            f"{checkpoint}: no config.yaml in the directories around it, and a checkpoint holds trained tensors only. Keep "
            "it in its run directory, RUN/checkpoints."
        )
    config = read_config(run_dir)
    _check_targets(config, run_dir)
    averages = _wants_averages(config, checkpoint, weights)
    source, lora = model_source(config.model), make_lora(config.model.lora)
    processor = load_processor(source.processor_source, budget=pixel_budget(config.data))
    vlm = source.build(dtype=weights_dtype(str(config.trainer.precision)))
    if lora is not None:
        lora.inject(vlm.model)
    packed = PackedVLM(vlm.model, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)
    policy = build(config.freeze, FreezePolicy)
    if lora is None:
        policy.apply(vlm.model)
    else:
        lora.choose(vlm.model, policy)
    load_weights(checkpoint, _Holder(packed), averages=averages)
    vlm.model.eval()
    trained = {
        "freeze": state.freeze,
        "lora": vars(lora) if lora else None,
        "step": state.step,
        "checkpoint": checkpoint.name,
        "plan": state.plan_key,
        "average": averages,
    }
    return TrainedModel(
        hf=vlm.model,
        processor=processor,
        lora=lora,
        source=source,
        dtype=export_dtype(config, source, vlm.model.dtype),
        provenance={**vlm.provenance, "trained": trained},
    )


def _check_targets(config: DictConfig, run_dir: Path) -> None:
    """Call nothing that a config names but what vlmkit's own configs name: a run may come from anybody.

    Raises:
        ConfigError: naming what would have been called.
    """
    for group, known in _TARGETS.items():
        if foreign := sorted({*targets(config[group])} - known):
            raise ConfigError(
                f"{run_dir / 'config.yaml'}: {group} has {foreign[0]}, which is not vlmkit's, so it is not called: a config "
                f"that comes with a run could run any code. Train with it to the end (its hf/ needs no {group}), or export it "
                "while training: save.export_every_n_steps."
            )


def best_checkpoint(checkpoint: Path) -> Path:
    """The checkpoint that is best by the `save.best` of a run.

    Args:
        checkpoint: Any checkpoint of it; the newest one of its directory is asked.

    Raises:
        CheckpointError: the run kept none, or it is gone.
    """
    run_dir = checkpoint.absolute().parents[1]
    newest = newest_checkpoint(run_dir) or checkpoint
    step = _best_step(newest, run_dir / VALIDATIONS)
    if step is None:
        raise CheckpointError(
            f"weights=best: {newest} knows of no best checkpoint, as save.best= keeps one while training. Use weights=auto."
        )
    best = newest.with_name(checkpoint_name(step))
    if not best.exists():
        raise CheckpointError(f"weights=best: {best} is gone. Use weights=auto, or export another checkpoint.")
    return best


def _best_step(checkpoint: Path, validations: Path) -> int | None:
    """Step of the best validation that a checkpoint knows of, or that followed its writing; None: none was judged."""
    state: dict[str, Any] = read_content(meta_file(checkpoint))["callbacks"].get(Validator.__qualname__, {})
    step, best, metric = state.get("best_step"), state.get("best_value"), state.get("metric")
    if metric is None:
        return step
    last = read_state(checkpoint).step
    for line in read_lines(validations) if validations.is_file() else []:
        value = line["metrics"].get(metric)
        unknown = (
            (state.get("judged_step") or 0) < line["step"] <= last
        )  # a checkpoint is written before its validation
        if unknown and value is not None and (best is None or is_improvement(metric, value, best)):
            step, best = line["step"], value
    return step


def pixel_budget(data: DictConfig) -> PixelBudget:
    """The pixel limits that `data` sets; its manifests need not be there."""
    return PixelBudget(**{name: data.get(name) for name in PixelBudget.__dataclass_fields__})


def _wants_averages(config: DictConfig, checkpoint: Path, weights: Weights) -> bool:
    """Whether the running average is what is to be exported.

    Raises:
        CheckpointError: it is asked for, and there is none.
    """
    if weights == "last" or not holds_averages(checkpoint):
        if weights == "average":
            raise CheckpointError(
                f"weights=average: {checkpoint} holds none, as callbacks=average keeps one while training. Use weights=last."
            )
        return False
    target = f"{WeightAverage.__module__}.{WeightAverage.__qualname__}"
    exports = any(node and node.get("_target_") == target and node.export for node in config.callbacks.values())
    return weights == "average" or exports
