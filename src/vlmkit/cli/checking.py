"""Looks through a training run without training: the composition root behind `vlmkit-check`.

Each section is looked at on its own: what an error leaves unmade is missing in the sections after it, which say so and
tell what can be told without it. Everything is wired by the functions that wire a training.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from vlmkit.cli.checking_data import data_section, plan_section
from vlmkit.cli.checking_resources import Forecast, forecast_by_rehearsal, resources_section
from vlmkit.cli.checks import Checked
from vlmkit.cli.contract import check_contract
from vlmkit.cli.findings import Report, Section
from vlmkit.cli.settings import find_faults
from vlmkit.cli.training import (
    BEST,
    attention_of,
    compare_settings,
    late_parts,
    make_trainer,
    model_source,
    optimizer_node,
    refuse_occupied,
    with_starting_weights,
)
from vlmkit.cli.validating import make_data
from vlmkit.config import build
from vlmkit.data.manifest import resolve_sources
from vlmkit.model.attention import KERNEL_NAMES, compute_capability, precision_fault
from vlmkit.model.checkpoint import check_replaceable
from vlmkit.model.fit import end_token, misfits, sizes, weight_faults, without_weights
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.parts import PARTS
from vlmkit.processing.processor import load_processor
from vlmkit.training.optim import OptimizerPlan, make_optimizer, parameter_groups
from vlmkit.training.shards import check_whole
from vlmkit.training.state import find_checkpoint, read_state

_USED_AS_WRITTEN = ("check", "run_dir", "save", "seed", "trainer")
"""Settings that the sections read themselves: where one is wrong, they cannot be looked at."""


def check(config: DictConfig, run_dir: Path, *, forecast: Forecast = forecast_by_rehearsal) -> Report:
    """Look at config, model, data, plan and resources of a run; nothing is trained, and nothing written but the index.

    Args:
        config: As a training takes it, with `check`.
        run_dir: Where the run would write.
        forecast: Says what time and memory the run would take.
    """
    checked = Checked(config=config, run_dir=run_dir)
    sections = [config_section(checked)]
    for name, look in (
        ("model", model_section),
        ("data", data_section),
        ("plan", plan_section),
        ("resources", partial(resources_section, forecast=forecast)),
    ):
        if checked.settled:
            sections.append(look(checked))
        else:
            sections.append(Section(name=name))
            sections[-1].add("note", "not looked at: settings that it needs are wrong (see config)")
    return Report(sections=tuple(sections), num_steps=checked.num_steps, limit=config.check.limit)


def config_section(checked: Checked) -> Section:
    """Whether every group's settings are accepted; makes what the other sections look at."""
    section = Section(name="config")
    faults = find_faults(checked.config, "check")
    section.refuse(faults)
    checked.settled = not any(key.partition(".")[0] in _USED_AS_WRITTEN for key in faults)
    for place in ("hf", BEST):
        with section.guarded():
            check_replaceable(checked.run_dir / place)
    with section.guarded():
        if "init_from" not in faults:
            checked.config = with_starting_weights(checked.config)
    config = checked.config
    with section.guarded():
        checked.source = model_source(config.model)
    with section.guarded():
        checked.data = make_data(config.data)
    with section.guarded():
        if (
            checked.data is None and config.data.get("sources") and "data.sources" not in faults
        ):  # what the first error hid
            resolve_sources(OmegaConf.to_container(config.data.sources), root=config.data.get("root"))  # pyright: ignore[reportArgumentType]  # a list
    with section.guarded():
        checked.freeze = build(config.freeze, FreezePolicy)
    with section.guarded():
        checked.optim = build(optimizer_node(config.optim), OptimizerPlan)
    with section.guarded():
        checked.trainer = make_trainer(config, checked.run_dir)
    for key, make in late_parts(config, checked.run_dir, checked.trainer).items():
        if not any(fault.startswith(key) for fault in faults):
            with section.guarded():
                make()
    with section.guarded():
        if config.resume_from and (found := find_checkpoint(str(config.resume_from), checked.run_dir)):
            check_whole(found)
            checked.state, checked.checkpoint = read_state(found), found
            if checked.trainer is not None:
                compare_settings(config, checked.trainer, checked.state, found)
    with section.guarded():
        refuse_occupied(checked.run_dir, checked.checkpoint)
    with section.guarded():
        if checked.trainer is not None:
            capability = compute_capability(checked.trainer.strategy.root_device)
            section.figures["compute_capability"] = ".".join(map(str, capability)) if capability else None
            section.figures["attention"] = attention_of(config, checked.trainer)
            if fault := precision_fault(str(config.trainer.precision), capability):
                section.add("warning", fault)
    if section.mark != "error":
        kept = ", ".join(name for name in ("model", "data", "freeze", "optim", "trainer", "logger", "callbacks"))
        kernel = section.figures["attention"]
        section.add("ok", f"the settings of {kept} are accepted; attention by {kernel} ({KERNEL_NAMES[kernel]})")
    if checked.checkpoint and checked.state:
        section.add("note", f"would resume from {checked.checkpoint}, at step {checked.state.step}")
    return section


def model_section(checked: Checked) -> Section:
    """Whether parts, processor, template and tokenizer fit, from configs, tokenizer files and headers of weights."""
    section = Section(name="model")
    source = checked.source
    if source is None:
        section.add("note", "not looked at: there is no model (see config)")
        return section
    with section.guarded():
        checked.hf_config = source.config()
    with section.guarded():
        budget, reading = (checked.data.budget, checked.data.reading) if checked.data else (None, None)
        checked.processor = load_processor(source.processor_source, budget=budget, reading=reading)
    with section.guarded():
        if checked.processor is not None and checked.config.init_from:
            allowed = checked.config.get("init_allow") or []
            for difference in check_contract(Path(checked.config.model.path), checked.processor, allowed):
                section.add("note", f"allowed by init_allow: {difference}")
    if checked.hf_config is not None:
        with section.guarded():
            for told in weight_faults(source):
                section.add("error", told)
        with section.guarded():
            _look_at_parts(checked, section)
    if checked.hf_config is not None and checked.processor is not None:
        found = misfits(checked.hf_config, checked.processor)
        for told in found:
            section.add("error", told)
        if not found:
            section.add("ok", "tokenizer, special tokens, template and image patches are those of the model")
        _look_at_limits(checked, section)
    return section


def _look_at_parts(checked: Checked, section: Section) -> None:
    """Sizes of the parts, what is trained of each, and whether an optimiser can be made of it."""
    assert checked.hf_config is not None
    model = without_weights(checked.hf_config)
    if checked.freeze is not None:
        checked.freeze.apply(model)
        checked.freeze.set_modes(model)
        if checked.optim is not None:
            make_optimizer(parameter_groups(model.named_parameters(), checked.optim), checked.optim)
    checked.sizes = sizes(model)
    section.figures["parameters"] = dict(checked.sizes.parameters)
    section.figures["trained_parameters"] = dict(checked.sizes.trained)
    told = [
        f"{part} {checked.sizes.parameters[part]:,} ({'trained' if checked.sizes.trained[part] else 'frozen'})"
        for part in PARTS
    ]
    section.add("ok", f"parameters: {', '.join(told)}")


def _look_at_limits(checked: Checked, section: Section) -> None:
    processor, config = checked.processor, cast(Any, checked.hf_config)
    assert processor is not None
    limits = processor.limits()
    section.figures["pixel_limits"] = limits
    area = processor.geometry.factor**2
    least, most = -(-processor.image_min_pixels // area), processor.image_max_pixels // area
    section.add(
        "ok", f"an image takes about {least:,} to {most:,} visual tokens ({limits['image_max_pixels']:,} pixels)"
    )
    longest, positions = checked.data.max_tokens if checked.data else None, config.text_config.max_position_embeddings
    if longest is not None and longest > positions:
        section.add(
            "warning",
            f"data.max_tokens={longest} exceeds the {positions} positions that the language model was made for",
        )
    if end_token(processor) is None:
        section.add(
            "warning",
            "the chat template ends an assistant turn with no special token, so the model does not learn to stop. "
            "Use the checkpoint's template.",
        )
