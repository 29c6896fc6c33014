"""Looks through a training run without training: the composition root behind `vlmkit-check`.

Each section is looked at on its own: what an error leaves unmade is missing in the sections after it, which say so and
tell what can be told without it. Everything is wired by the functions that wire a training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from vlmkit.cli.checking_data import data_section, plan_section
from vlmkit.cli.checking_resources import Forecast, forecast_by_rehearsal, resources_section
from vlmkit.cli.checks import Checked
from vlmkit.cli.findings import Report, Section
from vlmkit.cli.training import (
    check_numbers,
    compare_settings,
    make_lora,
    make_trainer,
    model_source,
    optimizer_node,
    refuse_occupied,
    with_starting_weights,
)
from vlmkit.cli.validating import make_data
from vlmkit.config import build
from vlmkit.data.manifest import resolve_sources
from vlmkit.model.attention import KERNEL_NAMES, attention_dtype, choose_kernel, compute_capability, precision_fault
from vlmkit.model.checkpoint import check_replaceable
from vlmkit.model.fit import end_token, misfits, sizes, weight_faults, without_weights
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.lora import Lora
from vlmkit.model.parts import PARTS, Part
from vlmkit.processing.processor import load_processor
from vlmkit.training.optim import OptimizerPlan, parameter_groups
from vlmkit.training.state import find_checkpoint, read_state


def check(config: DictConfig, run_dir: Path, *, forecast: Forecast = forecast_by_rehearsal) -> Report:
    """Look at config, model, data, plan and resources of a run; nothing is trained, and nothing written but the index.

    Args:
        config: As a training takes it, with `check`.
        run_dir: Where the run would write.
        forecast: Says what time and memory the run would take.
    """
    checked = Checked(config=config, run_dir=run_dir)
    sections = (
        config_section(checked),
        model_section(checked),
        data_section(checked),
        plan_section(checked),
        resources_section(checked, forecast),
    )
    return Report(sections=sections, num_steps=checked.num_steps, limit=config.check.limit)


def config_section(checked: Checked) -> Section:
    """Whether every group's settings are accepted; makes what the other sections look at."""
    section = Section(name="config")
    with section.guarded():
        check_numbers(checked.config)
    with section.guarded():
        check_replaceable(checked.run_dir / "hf")
    with section.guarded():
        checked.config = with_starting_weights(checked.config)
    config = checked.config
    with section.guarded():
        checked.source = model_source(config.model)
    with section.guarded():
        checked.data = make_data(config.data)
    with section.guarded():
        if checked.data is None and config.data.get("sources"):  # what the first error hid
            resolve_sources(OmegaConf.to_container(config.data.sources), root=config.data.get("root"))  # pyright: ignore[reportArgumentType]  # a list
    with section.guarded():
        checked.freeze = build(config.freeze, FreezePolicy)
        checked.freeze.apply(torch.nn.Module())  # refuses to train nothing
    with section.guarded():
        checked.optim = build(optimizer_node(config.optim), OptimizerPlan)
    with section.guarded():
        checked.trainer = make_trainer(config, checked.run_dir)
    with section.guarded():
        for node in config.callbacks.values():
            if node:
                build(node, cast(Any, Callback))
    with section.guarded():
        if config.resume_from and (found := find_checkpoint(str(config.resume_from), checked.run_dir)):
            checked.state, checked.checkpoint = read_state(found), found
            if checked.trainer is not None:
                compare_settings(config, checked.trainer, checked.state, found)
    with section.guarded():
        refuse_occupied(checked.run_dir, checked.checkpoint)
    with section.guarded():
        if checked.trainer is not None:
            device = checked.trainer.strategy.root_device
            precision = str(config.trainer.precision)
            capability = compute_capability(device)
            section.figures["compute_capability"] = ".".join(map(str, capability)) if capability else None
            section.figures["attention"] = choose_kernel(
                config.model.attn_implementation, device, attention_dtype(precision), capability
            )
            if fault := precision_fault(precision, capability):
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
        budget = checked.data.budget if checked.data else None
        checked.processor = load_processor(source.processor_source, budget=budget)
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
    lora = make_lora(checked.config.model.lora)
    if lora is not None:
        lora.inject(model)
    if checked.freeze is not None:
        if lora is None:
            checked.freeze.apply(model)
            checked.freeze.set_modes(model)
        else:
            lora.choose(model, checked.freeze)
        if checked.optim is not None:
            parameter_groups(model.named_parameters(), checked.optim)
    checked.model, checked.sizes = model, sizes(model)
    section.figures["parameters"] = dict(checked.sizes.parameters)
    section.figures["trained_parameters"] = dict(checked.sizes.trained)
    parts = [
        f"{part} {checked.sizes.parameters[part]:,} ({_what_is_trained(checked.sizes.trained[part], lora, part)})"
        for part in PARTS
    ]
    section.add("ok", f"parameters: {', '.join(parts)}")


def _what_is_trained(trained: int, lora: Lora | None, part: Part) -> str:
    if lora is not None and lora.targets(part):
        return f"its adapters trained: {trained:,}"
    return "trained" if trained else "frozen"


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
