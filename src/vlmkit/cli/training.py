"""Wires a training run from its config: the composition root behind `vlmkit-train`."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from vlmkit import __version__
from vlmkit.batch import Batch
from vlmkit.cli.contract import check_allowed, check_assembly, check_contract, check_resumable, run_contract
from vlmkit.cli.ranks import launch_name, part, use_command
from vlmkit.cli.settings import check_settings
from vlmkit.cli.telling import end_table, make_loggers, opened
from vlmkit.cli.validating import check_validation, held_out_data, make_data, make_validator
from vlmkit.config import build, chosen_by_user, read_config, save_config, taken_over, this_job
from vlmkit.data.datamodule import PackedDataModule
from vlmkit.errors import CheckpointError, ConfigError, Interrupted
from vlmkit.model.assembly import VLM, Assembly, Sketch, WholeCheckpoint
from vlmkit.model.attention import Chosen, attention_dtype, choose_kernel, compute_capability, precision_fault
from vlmkit.model.checkpoint import check_replaceable, prove_export, save_hf
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.liger import check_kernels, use_kernels
from vlmkit.model.lora import Lora, check_peft, prove_merge
from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import set_checkpointing
from vlmkit.pages.curves import draw_curves
from vlmkit.processing.processor import Processor, load_processor
from vlmkit.storage import is_full, written_aside
from vlmkit.training.callbacks.average import WeightAverage
from vlmkit.training.callbacks.bad_media import BadMedia
from vlmkit.training.callbacks.checkpointer import Checkpointer
from vlmkit.training.callbacks.guard import GuardSettings, LossGuard
from vlmkit.training.callbacks.prediction import StartForecast
from vlmkit.training.callbacks.receipt import GradientReceipt
from vlmkit.training.callbacks.steplog import StepLog
from vlmkit.training.callbacks.summary import AttentionReport, GroupTable
from vlmkit.training.callbacks.validator import Validator
from vlmkit.training.flops import FlopCount, count_flops
from vlmkit.training.module import TrainingModule
from vlmkit.training.optim import OptimizerPlan
from vlmkit.training.peaks import peak_flops
from vlmkit.training.proof import probe_losses, prove_collected
from vlmkit.training.shards import check_whole, gather_model, is_shared, load_weights
from vlmkit.training.state import (
    RunState,
    checkpoint_name,
    find_checkpoint,
    meta_file,
    newest_checkpoint,
    read_content,
    read_state,
)
from vlmkit.training.steplines import read_lines
from vlmkit.training.together import together

TAKEN_OVER = ("data", "model")
BEST = Path("checkpoints", "hf_best")
"""Where a run exports what is best by `save.best`."""
_OURS = ("attn_implementation", "gradient_checkpointing", "compile", "kernels", "lora")
"""Settings of `model` that concern training, not how the model is made."""
_DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64, "64": torch.float64}


@dataclass(kw_only=True)
class Run:
    """What a training run is made of, once wired."""

    config: DictConfig
    run_dir: Path
    source: Assembly | WholeCheckpoint
    data: PackedDataModule
    processor: Processor
    freeze: FreezePolicy
    lora: Lora | None
    state: RunState | None
    applied: set[str] = field(default_factory=set[str])
    checkpoint: Path | None
    trainer: L.Trainer
    bad_media: BadMedia
    interrupted: str | None = None
    made: list[VLM | Sketch] = field(default_factory=list[VLM | Sketch])

    @property
    def accumulate(self) -> int:
        """Micro-batches of an optimiser step and rank."""
        return self.trainer.accumulate_grad_batches


def train(config: DictConfig, run_dir: Path) -> None:
    """Train as the config says; leave checkpoints, `hf/`, `train.jsonl` and `report.json` in the run directory.

    Raises:
        Interrupted: a signal told the run to leave; it is saved and can be resumed.
    """
    if threading.current_thread() is threading.main_thread():
        # Until training listens for it, and in the processes that load: a job's warning is no reason to die.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    started = time.perf_counter()
    check_settings(config, "train")
    for place in ("hf", BEST):
        check_replaceable(run_dir / place)  # not found out after the training
    config = with_starting_weights(config)
    L.seed_everything(config.seed, verbose=False)
    run = wire(config, run_dir)
    use_command(run.trainer, this_job("train", run_dir))
    with (
        together(run_dir=run_dir, launch=launch_name(), rank=run.trainer.global_rank, num_ranks=run.trainer.world_size),
        told_when_full(run_dir),
    ):
        report = fit_and_export(run, started)
    part(run.trainer)
    if run.interrupted is not None:
        if not run.trainer.is_global_zero:
            raise SystemExit(Interrupted.status)  # the first one says why
        raise Interrupted(run.interrupted)
    if report is not None:
        print(report)


def fit_and_export(run: Run, started: float) -> str | None:
    """Everything that all ranks do; what the first one has to say at the end."""
    prepare_data(run)
    first_rank = run.trainer.is_global_zero and not int(os.environ.get("LOCAL_RANK", "0"))
    if first_rank:
        save_config(run.config, run.run_dir)
        print(describe_data(run))
    module = make_module(run)
    watchers = add_callbacks(run, module)
    if run.data.steps(run.trainer.world_size, run.accumulate).packs.size == 0:
        print(f"Nothing is left to train: {run.checkpoint} is at the end of its plan.")
        take_up_end(run, module, watchers)
    else:
        with opened(run.trainer.loggers if first_rank else []):
            run.trainer.fit(module, datamodule=run.data, ckpt_path=run.checkpoint, weights_only=True)
    if (stopped_by := watchers.checkpointer.stopped_by) is not None:
        run.interrupted = (
            f"{stopped_by}: saved after step {watchers.checkpointer.step} in {watchers.checkpointer.directory}. Continue with "
            f"run_dir={run.run_dir} resume_from=auto."
        )
        return None
    export(run, module, run.run_dir / "hf", trained={})
    best = export_best(run, module, watchers.validator)
    if not run.trainer.is_global_zero:
        return None
    report = make_report(run, watchers, best=best, seconds=time.perf_counter() - started)
    with written_aside(run.run_dir / "report.json") as aside:
        aside.write_text(json.dumps(report, indent=1, default=str) + "\n")
    lines, validations = (read_lines(run.run_dir / name) for name in ("train.jsonl", "validation.jsonl"))
    draw_curves(lines, validations, run.run_dir / "curves.png")
    return end_table(report, trained_groups(module), run.run_dir)


def export(run: Run, module: TrainingModule, directory: Path, *, trained: dict[str, Any]) -> None:
    """Write the model as it stands, and prove what was written; every rank must call.

    Args:
        run: What is exported.
        module: Holds its weights.
        directory: Of the export.
        trained: For `vlmkit.json`: what else is to be said of how it was trained.
    """
    shared = is_shared(module)
    losses = probe_losses(module, run.processor, run.trainer.precision_plugin.forward_context()) if shared else None
    model = gather_model(module.packed.hf, merge=run.lora.merge if run.lora else None)
    if model is None or not run.trainer.is_global_zero:
        return
    if run.lora and not shared:
        prove_merge(module.packed.hf, model)
    told = provenance(run)
    told["trained"] |= trained
    save_hf(model=model, processor=run.processor, directory=directory, provenance=told)
    prove_export(directory, model=model, processor=run.processor)
    if losses is not None:
        rounded = not str(run.config.trainer.precision).startswith(("32", "64"))
        worst = prove_collected(model, losses, run.processor, rounded=rounded)
        print(f"{directory}: collected from {run.trainer.world_size} ranks; losses of a probe differ by {worst:.1g}.")


def export_best(run: Run, module: TrainingModule, validator: Validator | None) -> Path | None:
    """Export the checkpoint that is best by `save.best` as well; every rank must call. The weights are its afterwards.

    Returns:
        The directory; None where there is no best one, or it is gone.
    """
    if validator is None or validator.best_step is None:
        return None
    checkpoint = run.run_dir / "checkpoints" / checkpoint_name(validator.best_step)
    if not checkpoint.exists():  # deleted by hand: the run itself is whole
        print(f"save.best: {checkpoint} is gone, so {BEST} is not written.")
        return None
    load_weights(checkpoint, module, averages=module.exports_averages)
    told = {"metric": validator.best, "value": validator.best_value, "step": validator.best_step}
    export(run, module, run.run_dir / BEST, trained={"best": told})
    return run.run_dir / BEST


@contextmanager
def told_when_full(run_dir: Path) -> Generator[None]:
    """Turn the disk's refusal, wherever it comes, into an error that says what stands.

    Raises:
        CheckpointError: the disk, a quota or a limit on the size of files is reached.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise CheckpointError(
            f"{run_dir}: no more can be written ({error}). The newest good checkpoint is "
            f"{newest_checkpoint(run_dir) or 'none'}. Make room, then continue with resume_from=auto."
        ) from error


def with_starting_weights(config: DictConfig) -> DictConfig:
    """Follow `init_from`: its weights, and a run's data and model settings unless overridden.

    Raises:
        ConfigError: `init_from` and `model=` both name weights, or there is nothing to start from.
    """
    if not config.init_from:
        return config
    check_allowed(OmegaConf.to_container(config.get("init_allow") or OmegaConf.create([])))
    place = Path(config.init_from).expanduser()
    if chosen_by_user("model"):
        raise ConfigError(
            f"init_from={config.init_from} and model= both say what weights to start from. Give one of the two."
        )
    weights = place / "hf" if (place / "config.yaml").is_file() else place
    if not (weights / "config.json").is_file():
        raise ConfigError(
            f"init_from={config.init_from}: no model in {weights}. Name a finished run directory or a Hugging Face directory."
        )
    if weights != place:
        saved = read_config(place)
        check_assembly(saved.model, _OURS)
        config = taken_over(config, saved, TAKEN_OVER)
        check_settings(config, "train")
        print(
            f"Taken over from {place}: data={saved.choices['data']}, model={saved.choices['model']}, unless overridden."
        )
    node = config.model
    with open_dict(config):
        config.model = {
            "_target_": "vlmkit.model.assembly.WholeCheckpoint",
            "path": str(weights),
            "processor": node.get("processor"),
            **{name: node[name] for name in _OURS},
        }
    return config


def wire(config: DictConfig, run_dir: Path) -> Run:
    """Make the objects that the config describes; nothing is read or trained yet."""
    source = model_source(config.model)
    data = make_data(config.data)
    trainer = make_trainer(config, run_dir)
    for make in late_parts(config, run_dir, trainer).values():
        make()
    checkpoint = find_checkpoint(str(config.resume_from), run_dir) if config.resume_from else None
    refuse_occupied(run_dir, checkpoint)
    processor = load_processor(source.processor_source, budget=data.budget, reading=data.reading)
    if config.init_from:
        for difference in check_contract(Path(config.model.path), processor, config.get("init_allow") or []):
            print(f"Allowed by init_allow: {difference}")
    state, applied = None, {}
    if checkpoint:
        check_whole(checkpoint)
        state = read_state(checkpoint)
        applied = compare_settings(config, trainer, state, checkpoint)
        for change in (change for changes in applied.values() for change in changes):
            print(f"Applied by resume_allow: {change}")
    return Run(
        config=config,
        run_dir=run_dir,
        source=source,
        data=data,
        processor=processor,
        lora=make_lora(config.model.lora),
        freeze=build(config.freeze, FreezePolicy),
        state=state,
        applied=set(applied),
        checkpoint=checkpoint,
        trainer=trainer,
        bad_media=make_bad_media(data),
    )


def late_parts(config: DictConfig, run_dir: Path, trainer: L.Trainer | None) -> dict[str, Callable[[], object]]:
    """What makes, by its key, each object that a run needs only once the data are read.

    `wire` and `vlmkit-check` make each of them once before that, so that a setting which cannot work is refused at once.
    Without a Trainer, what depends on it is left out.
    """
    model = config.model
    parts: dict[str, Callable[[], object]] = {
        "optim": lambda: build(optimizer_node(config.optim), OptimizerPlan),
        "freeze": lambda: build(config.freeze, FreezePolicy).apply(torch.nn.Module()),  # refuses to train nothing
        "guard": lambda: build(config.guard, GuardSettings),
        "callbacks": lambda: make_callbacks(config),
        "model.lora": lambda: make_lora(model.lora),
        "model.kernels": lambda: check_kernels(model.kernels),
    }
    if trainer is not None:
        parts["model.attn_implementation"] = lambda: attention_of(config, trainer)
        parts["validate"] = lambda: check_validation(config, run_dir, trainer)
    return parts


def make_callbacks(config: DictConfig) -> list[Callback]:
    """The observers that the config names."""
    return [build(node, cast(Any, Callback)) for node in config.callbacks.values() if node]


def attention_of(config: DictConfig, trainer: L.Trainer) -> Chosen:
    """The attention kernel of a run.

    Raises:
        ConfigError: the one that is asked for cannot run on its device or in its precision.
    """
    dtype = attention_dtype(str(config.trainer.precision))
    return choose_kernel(config.model.attn_implementation, trainer.strategy.root_device, dtype)


def compare_settings(config: DictConfig, trainer: L.Trainer, state: RunState, checkpoint: Path) -> dict[str, list[str]]:
    """Differences from the settings of a checkpoint that `resume_allow` has applied, by kind, in words.

    Raises:
        ConfigError: there are others.
    """
    allowed = OmegaConf.to_container(config.get("resume_allow") or OmegaConf.create([]))
    return check_resumable(checkpoint, state.contract, run_contract(config, precision=str(trainer.precision)), allowed)


def refuse_occupied(run_dir: Path, checkpoint: Path | None) -> None:
    """Refuse a directory that holds another run than the one that is resumed: this one would replace it as it goes.

    Raises:
        ConfigError: naming what was found.
    """
    if checkpoint is not None and checkpoint.resolve().parent == (run_dir / "checkpoints").resolve():
        return
    if newest := newest_checkpoint(run_dir):
        raise ConfigError(
            f"run_dir={run_dir}: another run is in this directory, its newest checkpoint {newest.name}. Resume that run by "
            "resume_from=auto, name another run_dir, or remove the directory."
        )
    if (run_dir / "hf").is_dir():
        raise ConfigError(
            f"run_dir={run_dir}: the model of another run is in this directory (hf). Name another run_dir, or remove the directory."
        )


def make_bad_media(data: PackedDataModule) -> BadMedia:
    """What counts the rows whose media cannot be read."""
    return BadMedia(
        masks=data.on_bad_media == "mask",
        most=data.max_bad_media,
        origin_of=lambda row: data.index.origin(row),  # the index is read later on
    )


def make_trainer(config: DictConfig, run_dir: Path) -> L.Trainer:
    """The Trainer with the config's flags and loggers; the plan, the log and the checkpoints are ours.

    Raises:
        ConfigError: a flag that Lightning refuses, or devices that are not here.
    """
    loggers = make_loggers(config.logger)
    flags = {name: value for name, value in config.trainer.items() if name not in ("max_epochs", "max_steps")}
    try:
        return build(
            OmegaConf.create(flags),
            L.Trainer,
            "trainer",
            max_epochs=1,  # the plan holds all epochs and is one of Lightning's
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            logger=loggers or False,
            default_root_dir=run_dir,
        )
    except (MisconfigurationException, ImportError) as error:  # a device that is not here, or its library
        raise ConfigError(
            f"trainer: {str(error).rstrip('.!')}. Check trainer.accelerator and trainer.devices."
        ) from error


def model_source(node: DictConfig) -> Assembly | WholeCheckpoint:
    """What makes the model: `model` without the settings that concern training."""
    model = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    ours = OmegaConf.create({name: value for name, value in model.items() if name not in _OURS})
    return build(ours, cast("type[Assembly | WholeCheckpoint]", (Assembly, WholeCheckpoint)), "model")


def make_lora(node: DictConfig) -> Lora | None:
    """Adapters, where `model.lora.rank` is not 0.

    Raises:
        ConfigError: the settings cannot work.
    """
    if not node.rank:
        return None
    check_peft()
    settings = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    return build(OmegaConf.create({"_target_": "vlmkit.model.lora.Lora", **settings}), Lora, "model.lora")


def prepare_data(run: Run) -> None:
    """Count and plan; take up the plan where a resumed run stands.

    Raises:
        CheckpointError: the plan is not the one that the checkpoint was trained on.
    """
    run.data.prepare(
        processor=run.processor,
        num_epochs=run.config.trainer.max_epochs,
        max_packs=most_packs(run.config.trainer.max_steps, run.state, run.trainer.world_size * run.accumulate),
        require_media=needs_media(run.freeze, run.lora),
    )
    if run.state is not None:
        take_up(run.data, run.freeze, run.state, run.checkpoint)


def most_packs(max_steps: int | None, state: RunState | None, packs_per_step: int) -> int | None:
    """Packs of the plan that `trainer.max_steps` leaves room for, those that a resumed run has done included."""
    done, consumed = (state.step, state.consumed_packs) if state else (0, 0)
    return None if max_steps is None else consumed + max(0, max_steps - done) * packs_per_step


def needs_media(freeze: FreezePolicy, lora: Lora | None) -> bool:
    """Whether text-only rows would train nothing: only the merger learns."""
    return freeze.vision_encoder and freeze.language_model and lora is None


def take_up(data: PackedDataModule, freeze: FreezePolicy, state: RunState, checkpoint: Path | None) -> None:
    """Go on in the plan where a resumed run stands.

    Raises:
        CheckpointError: the plan, or what is frozen, is not that of the checkpoint.
    """
    if state.plan_key != data.plan.key:
        raise CheckpointError(
            f"resume_from: {checkpoint} was trained on another plan: the data, the processor, data.seed, data.batch_size or "
            "another setting of the packs has changed. Set them back, or start a new run with init_from."
        )
    if state.freeze != vars(freeze):
        raise CheckpointError(
            f"resume_from: {checkpoint} was trained with freeze {state.freeze}, now it is {vars(freeze)}. "
            "Set it back, or start a new run with init_from."
        )
    data.start_pack, data.start_step = state.consumed_packs, state.step


def make_module(run: Run) -> TrainingModule:
    """The LightningModule; the model itself is made when the Trainer asks for it."""
    model, lora = run.config.model, run.lora
    dtype = _DTYPES.get(str(run.config.trainer.precision), torch.float32)

    def packed(made: VLM | Sketch) -> PackedVLM:
        run.made.append(made)
        set_checkpointing(made.model, **model.gradient_checkpointing)
        use_kernels(made.model, model.kernels)
        if lora is not None:
            lora.inject(made.model)
        return PackedVLM(
            made.model,
            pixel_mean=run.processor.pixel_mean,
            pixel_std=run.processor.pixel_std,
            kernel=model.attn_implementation,
            compiled=model.compile,
        )

    def make_model() -> PackedVLM:
        vlm = run.source.build(dtype=dtype)
        if run.source.proves and isinstance(run.source, Assembly):
            run.source.prove(vlm)
        return packed(vlm)

    def make_sketch() -> tuple[PackedVLM, Callable[[str, int, int], Tensor]]:
        if run.source.proves and run.trainer.is_global_zero:
            print("No rank holds the whole model, so the assembly is not proved here: vlmkit-assemble proves it.")
        sketch = run.source.sketch(dtype=dtype)
        made = packed(sketch)
        if lora is None:
            return made, sketch.read
        return made, lora.reader(sketch.read, made.hf, seed=run.config.seed)

    module = TrainingModule(
        make_model=make_model,
        make_sketch=make_sketch,
        lora=lora,
        freeze=run.freeze,
        optimizer_plan=build(optimizer_node(run.config.optim), OptimizerPlan),
        count_steps=run.data.num_steps,
    )
    module.applies_plan = not run.applied.isdisjoint({"optim", "schedule"})
    return module


def optimizer_node(node: DictConfig) -> DictConfig:
    """`optim`, with an optimiser it names left to be made once there are parameters."""
    if node.optimizer is None:
        return node
    made_later = node.copy()
    with open_dict(made_later):  # a composed config takes no new keys
        if "_target_" in made_later.optimizer:
            made_later.optimizer["_partial_"] = True
    return made_later


@dataclass(frozen=True, kw_only=True)
class Watchers:
    """Observers of a run whose findings are read afterwards."""

    log: StepLog
    guard: LossGuard
    checkpointer: Checkpointer
    validator: Validator | None
    attention: AttentionReport


def add_callbacks(run: Run, module: TrainingModule) -> Watchers:
    """Give the Trainer its observers: those of the config, and guard, log, checkpoints and group table."""
    save, log, data = run.config.save, run.config.log, run.data
    contract = run_contract(run.config, precision=str(run.trainer.precision))

    def state_at(step: int) -> RunState:
        steps = data.steps(run.trainer.world_size, run.accumulate)
        consumed = steps.num_consumed(step - data.start_step)
        return RunState(
            step=step,
            consumed_packs=consumed,
            plan_key=data.plan.key,
            freeze=vars(run.freeze),
            contract=contract,
        )

    def epoch_at(step: int) -> float:
        consumed = state_at(step).consumed_packs
        epochs = data.plan.epochs
        current = int(epochs[min(consumed, len(epochs) - 1)])
        first, end = (int(np.searchsorted(epochs, current, side=side)) for side in ("left", "right"))
        return current + (consumed - first) / max(1, end - first)

    counts: list[FlopCount] = []

    def flops_of(batch: Batch) -> float:
        if not counts:
            counts.append(count_flops(module.packed.hf))
        return counts[0](batch)

    step_log = StepLog(
        path=run.run_dir / "train.jsonl",
        every_n_steps=log.every_n_steps,
        num_steps=lambda: data.num_steps(run.trainer.world_size, run.accumulate),
        source_names=[source.name for source in data.sources],
        epoch_at=epoch_at,
        progress=log.progress,
        flops_of=flops_of,
        peak_flops=peak_flops(run.trainer.strategy.root_device, str(run.config.trainer.precision)),
    )
    configured = make_callbacks(run.config)
    forecasts = [one for one in configured if isinstance(one, StartForecast)]

    def leave_out(seconds: float) -> None:
        for one in (step_log, *forecasts):
            one.pause(seconds)

    guard = LossGuard(
        run_dir=run.run_dir,
        settings=build(run.config.guard, GuardSettings),
        origin_of=lambda row: str(data.index.origin(row)),
    )
    checkpointer = Checkpointer(
        run_dir=run.run_dir,
        every_n_steps=save.every_n_steps,
        every_minutes=save.every_minutes,
        keep=save.keep,
        state_at=state_at,
        done_batches=lambda: data.start_step * run.accumulate,
        before_save=guard.settle,
        spared=lambda: {checkpoint_name(validator.best_step)} if validator and validator.best_step else set[str](),
        paused=leave_out,
    )
    validator = make_validator(
        run.config,
        run.run_dir,
        trainer=run.trainer,
        module=module,
        processor=run.processor,
        data=data,
        held_out=held_out_data(run.config, data, run.processor),
        save=checkpointer.save,
        paused=leave_out,
    )
    # The guard stands first: a strange loss is told before its gradients are. The log stands before the checkpointer:
    # when a checkpoint is there, so is its line.
    attention = AttentionReport()
    cast(Any, run.trainer).callbacks.extend(
        [
            GroupTable(),
            attention,
            guard,
            *configured,
            run.bad_media,
            step_log,
            *([validator] if validator else []),
            checkpointer,
        ]
    )
    return Watchers(log=step_log, guard=guard, checkpointer=checkpointer, validator=validator, attention=attention)


def trained_groups(module: TrainingModule) -> dict[str, tuple[int, float]]:
    """Parameters and learning rate of each part that is trained, its groups with and without decay together."""
    found: dict[str, tuple[int, float]] = {}
    for group in module.groups:
        found[group.part] = (found.get(group.part, (0, 0.0))[0] + group.num_parameters, group.lr)
    return found


def take_up_end(run: Run, module: TrainingModule, watchers: Watchers) -> None:
    """Stand where a run stood when it had trained all of its plan: weights, and what its observers have counted."""
    assert run.checkpoint is not None
    callbacks: list[Callback] = cast(Any, run.trainer).callbacks
    module.configure_model()
    module.exports_averages = any(isinstance(one, WeightAverage) and one.export for one in callbacks)
    load_weights(run.checkpoint, module, averages=module.exports_averages)
    content = read_content(meta_file(run.checkpoint))
    for one in callbacks:
        if (state := content["callbacks"].get(one.state_key)) is not None:
            one.load_state_dict(state)
    watchers.log.take_up()


def provenance(run: Run) -> dict[str, Any]:
    """For `vlmkit.json`: where the weights came from, and what trained them."""
    vlm = run.made[0]
    return {
        **vlm.provenance,
        "trained": {
            "freeze": vars(run.freeze),
            "lora": vars(run.lora) if run.lora else None,
            "data": run.data.name,
            "plan": run.data.plan.key,
        },
    }


def packs_trained(run: Run) -> int:
    """Packs of the plan that are done, those of a resumed run before included."""
    steps = run.data.steps(run.trainer.world_size, run.accumulate)
    return steps.num_consumed(max(0, run.trainer.global_step - run.data.start_step))


def make_report(run: Run, watchers: Watchers, *, best: Path | None, seconds: float) -> dict[str, Any]:
    """For `report.json`: what became of every row, what was trained on, and with what."""
    receipts = [one.report() for one in cast(Any, run.trainer).callbacks if isinstance(one, GradientReceipt)]
    forecasts = [one.report() for one in cast(Any, run.trainer).callbacks if isinstance(one, StartForecast)]
    device = run.trainer.strategy.root_device
    return {
        "schema": "vlmkit.report/1",
        "data": run.data.name,
        "rows": run.data.accounting(packs_trained(run), masked=list(run.bad_media.rows.values())),
        "steps": run.data.num_steps(run.trainer.world_size, run.accumulate),
        "packs": len(run.data.plan),
        "fill": run.data.plan.fill,
        "trained_on": watchers.log.totals,
        "last": watchers.log.last,
        "losses": watchers.guard.report(),
        "best": watchers.validator.report() | {"export": best} if watchers.validator else None,
        "receipt": receipts[0] if receipts else None,
        "forecast": forecasts[0] if forecasts else None,
        "seconds": seconds,
        "hashes": {"plan": run.data.plan.key, "index": run.data.index.key, "processor": run.processor.fingerprint},
        "versions": {"vlmkit": __version__, "torch": torch.__version__, "lightning": L.__version__},
        "devices": {"kind": device.type, "ranks": run.trainer.world_size},
        "attention": watchers.attention.report(),
    }


def describe_data(run: Run) -> str:
    """What will be trained on, in two lines."""
    rows = run.data.accounting()["sources"].values()
    counts = {key: sum(row[key] for row in rows) for key in ("read", "trained", "skipped", "overlong")}
    steps = run.data.num_steps(run.trainer.world_size, run.accumulate)
    fault = precision_fault(str(run.config.trainer.precision), compute_capability(run.trainer.strategy.root_device))
    return (
        f"Data {run.data.name}: {counts['read']} rows read, {counts['trained']} trained, {counts['skipped']} skipped, "
        f"{counts['overlong']} over-long; {len(run.data.plan)} packs, {steps} steps.\n"
        f"Run {run.run_dir}"
        + (f", resumed from {run.checkpoint}" if run.checkpoint else "")
        + "."
        + (f"\nWarning: {fault}" if fault else "")
    )
