"""The section `machines` of a check: the run on machines that are asked for by `check.on` and need not be here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from vlmkit.cli.checks import Checked
from vlmkit.cli.findings import Section
from vlmkit.cli.training import make_lora
from vlmkit.config import build, conf_dir
from vlmkit.errors import ConfigError
from vlmkit.model.attention import attention_dtype, choose_kernel
from vlmkit.pages.machines import draw_memory
from vlmkit.preflight.estimate import Estimate, Estimator, Work, alternatives, estimates_table
from vlmkit.preflight.machine import Machine, Request, parse_requests
from vlmkit.preflight.packs import assumed_pack, heaviest_pack, median_pack, pack_shape
from vlmkit.preflight.simulation import StepSetting, Strategy

_BASIS = (
    "Simulated: the memory of tensors, by kind, of the heaviest pack with the optimiser's state; FLOPs and bytes moved.",
    "Computed from data sheets (conf/machine): seconds by a roofline, and what bounds them; loading as decoded here.",
    "Assumed: {shares}; CUDA context, NCCL buffers, attention workspace, 4 % fragmentation. Not run on these machines.",
)


def machines_section(checked: Checked) -> Section:
    """Memory, time and bounds of the run on each machine of `check.on`."""
    section = Section(name="machines")
    with section.guarded():
        requests = [(request, load_machine(request)) for request in parse_requests(_plain(checked.config.check.on))]
        work, basis = _work(checked)
        estimator = Estimator(work)
        estimates: list[Estimate] = []
        for request, machine in requests:
            configured = _setting(checked, request.num_gpus, machine)
            for setting in alternatives(configured) if checked.config.check.alternatives else [configured]:
                estimates.append(estimator.estimate(setting, machine, str(request)))
        section.figures["machines"] = [estimate.to_json() for estimate in estimates]
        machine = requests[0][1]
        shares = (
            f"{machine.product_share:.0%} of the peak for products, {machine.bandwidth_share:.0%} of memory bandwidth, "
            f"{machine.link_share:.0%} of links"
        )
        section.add("ok", basis, [*estimates_table(estimates), *(line.format(shares=shares) for line in _BASIS)])
        for request, _ in requests:
            first = next(estimate for estimate in estimates if estimate.request == str(request))
            if not first.memory.fits:
                section.add("warning", _does_not_fit(first, [e for e in estimates if e.request == str(request)]))
        if checked.config.check.picture:
            path = draw_memory(estimates, Path(checked.config.check.picture).expanduser())
            section.add("ok", f"memory of each machine, drawn: {path}")
    return section


def load_machine(request: Request) -> Machine:
    """The machine of a request: a choice of the group `machine`, or a yaml file of the user's own.

    Raises:
        ConfigError: naming what there is.
    """
    own = Path(request.machine).expanduser()
    path = own if own.suffix in (".yaml", ".yml") else conf_dir() / "machine" / f"{request.machine}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in (conf_dir() / "machine").glob("*.yaml"))
        raise ConfigError(
            f"check.on={request}: no such machine. There are {', '.join(known)}; or name a yaml file of your own."
        )
    node = OmegaConf.load(path)
    if not isinstance(node, DictConfig):
        raise ConfigError(f"check.on={request}: {path} holds no settings. Copy and change conf/machine/h100.yaml.")
    node.setdefault("_target_", f"{Machine.__module__}.{Machine.__qualname__}")
    return build(node, Machine, f"machine ({path.name})")


def _does_not_fit(estimate: Estimate, others: list[Estimate]) -> str:
    memory = estimate.memory
    fitting = [other.strategy for other in others if other.memory.fits]
    advice = f"It fits with {fitting[0]}" if fitting else "Share the model (trainer=fsdp) among more GPUs"
    if estimate.largest_tokens_per_batch:
        advice = f"Lower data.tokens_per_batch to {estimate.largest_tokens_per_batch}"
    return f"{estimate.request}: {memory.total / 2**30:.1f} GiB are needed and {memory.capacity / 2**30:.1f} are there. {advice}"


def _setting(checked: Checked, num_ranks: int, machine: Machine) -> StepSetting:
    config = checked.config
    if checked.hf_config is None or checked.freeze is None or checked.optim is None:
        raise ConfigError("check.on: the model, freeze or optim could not be made. Look at the errors above first.")
    recompute = config.model.gradient_checkpointing
    precision = str(config.trainer.precision)
    capability = None if machine.capability is None else (machine.capability[0], machine.capability[1])
    kernel = choose_kernel(
        config.model.attn_implementation, torch.device("cuda"), attention_dtype(precision), capability
    )
    return StepSetting(
        config=checked.hf_config,
        freeze=checked.freeze,
        lora=make_lora(config.model.lora),
        optimizer=checked.optim,
        precision=precision,
        recompute_vision_encoder=recompute.vision_encoder,
        recompute_language_model=recompute.language_model,
        strategy=_strategy(config, num_ranks),
        num_ranks=num_ranks,
        accumulate=checked.accumulate,
        kernel=kernel,
        averages=any("WeightAverage" in str(node.get("_target_")) for node in config.callbacks.values() if node),
    )


def _strategy(config: DictConfig, num_ranks: int) -> Strategy:
    if num_ranks == 1:
        return "single"
    return "fsdp" if isinstance(config.trainer.strategy, DictConfig) else "ddp"


def _work(checked: Checked) -> tuple[Work, str]:
    """The run's packs, and a sentence on where they come from."""
    data, hf_config = checked.data, checked.hf_config
    merge: int = hf_config.vision_config.spatial_merge_size if hf_config is not None else 2  # type: ignore[union-attr]
    workers = data.num_workers if data is not None else 0
    if data is not None and checked.planned:
        plan, index = data.plan, data.index
        heavy, average = (
            pack_shape(plan, index, number, merge_size=merge) for number in (heaviest_pack(plan), median_pack(plan))
        )
        seconds = [decoded.seconds for decoded in checked.decoded if decoded.seconds]
        load = float(np.mean(seconds)) * sum(bool(sample.grids) for sample in average) if seconds else None
        work = Work(heaviest=heavy, average=average, num_packs=len(plan), load_seconds=load, num_workers=workers)
        tokens = sum(sample.num_tokens for sample in heavy)
        return work, f"of the plan's {len(plan):,} packs, the heaviest has {tokens:,} tokens"
    settings = checked.config.data
    tokens = settings.tokens_per_batch or (settings.batch_size or 1) * (settings.max_tokens or 2000)
    assumed = assumed_pack(int(tokens), merge_size=merge)
    work = Work(heaviest=assumed, average=assumed, num_packs=None, load_seconds=None, num_workers=workers)
    return (
        work,
        f"there is no plan, so packs of {tokens:,} tokens are assumed, half of them visual, an eighth supervised",
    )


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
