"""What `vlmkit-check` looks at: config, model, data, plan and resources of a run, without training it.

Every section collects its own findings, so one fault does not hide the next.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from tqdm import tqdm

from vlmkit.cli.training import Run, check_numbers, prepare_data, wire, with_starting_weights
from vlmkit.cli.validating import make_data
from vlmkit.config import build
from vlmkit.data.dataset import PackDataset
from vlmkit.data.judging import OVER_LONG, TRAINED, Judgement
from vlmkit.data.survey import Group, histogram, survey_media, survey_rows
from vlmkit.errors import ConfigError, VlmkitError
from vlmkit.model.checkpoint import check_replaceable
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.parts import part_of
from vlmkit.training.optim import OptimizerPlan, describe_groups, parameter_groups

SCHEMA = "vlmkit.check/1"
Mark = Literal["ok", "note", "warning", "error"]
_BAR_WIDTH = 40
_SHOWN_OF_A_REASON = 3
_OPTIMIZER_STATES = 2
"""AdamW keeps two numbers a parameter."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        mark: `ok`, `note` (worth knowing), `warning` (the run would start, but look at this) or `error` (it would not).
        text: What was found and, where it is no good, what to do.
        lines: Rows, tables or bars below it.
    """

    mark: Mark
    text: str
    lines: tuple[str, ...] = ()


@dataclass
class Section:
    """The findings on one subject, and the numbers behind them for machines."""

    name: str
    findings: list[Finding] = field(default_factory=list[Finding])
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    def add(self, mark: Mark, text: str, lines: tuple[str, ...] | list[str] = ()) -> None:
        """Append a finding."""
        self.findings.append(Finding(mark=mark, text=text, lines=tuple(lines)))


@dataclass
class Report:
    """All sections."""

    sections: list[Section] = field(default_factory=list[Section])

    @property
    def errors(self) -> list[Finding]:
        """What would keep the run from starting."""
        return [one for section in self.sections for one in section.findings if one.mark == "error"]

    def facts(self, name: str) -> dict[str, Any]:
        """The numbers of a section; empty where it was not reached."""
        return next((section.facts for section in self.sections if section.name == name), {})

    def to_json(self) -> dict[str, Any]:
        """As `check.format=json` prints it."""
        return {
            "schema": SCHEMA,
            "ok": not self.errors,
            "sections": [
                {
                    "name": section.name,
                    "findings": [
                        {"mark": one.mark, "text": one.text, "lines": list(one.lines)} for one in section.findings
                    ],
                    "facts": section.facts,
                }
                for section in self.sections
            ],
        }

    def to_text(self) -> str:
        """For a terminal."""
        marks = {"ok": "ok     ", "note": "note   ", "warning": "WARNING", "error": "ERROR  "}
        lines: list[str] = []
        for section in self.sections:
            lines += ["", section.name]
            for one in section.findings:
                first, *rest = one.text.splitlines()
                lines += [f"  {marks[one.mark]} {first}"]
                lines += [f"          {line}" for line in (*rest, *one.lines)]
        return "\n".join([*lines, "", self._last_line()]).lstrip("\n")

    def _last_line(self) -> str:
        warnings = sum(one.mark == "warning" for section in self.sections for one in section.findings)
        more = f" {warnings} warning{'s' if warnings > 1 else ''} to look at." if warnings else ""
        if self.errors:
            return f"This run would fail: {len(self.errors)} error{'s' if len(self.errors) > 1 else ''}.{more}"
        return f"This run would start: {self.facts('plan').get('steps', 0):,} steps.{more}"


def check(config: DictConfig, run_dir: Path) -> Report:
    """Look at everything a training run with this config would meet."""
    report = Report()
    run = _check_config(config, run_dir, report)
    if run is None:
        return report
    parameters = _check_model(run, report)
    if _check_data(run, report):
        _check_plan(run, report)
    _check_resources(run, parameters, report)
    return report


@contextmanager
def _errors_into(section: Section) -> Generator[None]:
    """A user's error becomes a finding of the section."""
    try:
        yield
    except VlmkitError as error:
        section.add("error", str(error))


def _check_config(config: DictConfig, run_dir: Path, report: Report) -> Run | None:
    section = Section("config")
    report.sections.append(section)
    for settled in (
        lambda: check_numbers(config),
        lambda: build(config.optim, OptimizerPlan),
        lambda: build(config.freeze, FreezePolicy),
        lambda: check_replaceable(run_dir / "hf"),
    ):
        with _errors_into(section):
            settled()
    with _errors_into(section):
        config = with_starting_weights(config)
        if config.check.limit is not None:
            if type(config.check.limit) is not int or config.check.limit < 1:
                raise ConfigError(f"check.limit={config.check.limit}: wanted a whole number of at least 1, or null.")
            config.data.limit = min(config.check.limit, config.data.limit or config.check.limit)
            section.add(
                "note", f"check.limit={config.check.limit}: only the first rows are looked at; all counts are of these."
            )
        if report.errors:
            make_data(config.data)  # and no more: wiring would stop at what was found above
            return None
        run = wire(config, run_dir)
        section.add("ok", f"every setting is understood; the run directory is {run_dir}")
        if run.checkpoint:
            section.add("ok", f"resumes from {run.checkpoint}")
        return run
    return None


def _check_model(run: Run, report: Report) -> dict[str, int]:
    """Configs, tokenizers and tensors; what would be trained. Returns bytes by use."""
    section = Section("model")
    report.sections.append(section)
    with _errors_into(section):
        model = run.source.skeleton()
        config: Any = model.config
        section.add("ok", "configs fit, and every tensor is in the files with its shape")
        _check_processor(run, config.text_config.vocab_size, config, section)
        run.freeze.apply(model)
        groups = parameter_groups(model.named_parameters(), build(run.config.optim, OptimizerPlan))
        frozen: dict[Any, tuple[int, int]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                tensors, numbers = frozen.get(part := part_of(name), (0, 0))
                frozen[part] = (tensors + 1, numbers + parameter.numel())
        section.add("ok", "what is trained and what is frozen", describe_groups(groups, frozen).splitlines())
        total = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(group.num_parameters for group in groups)
        section.facts.update(parameters=total, trained_parameters=trained)
        width = 2 if str(run.config.trainer.precision) in ("bf16-true", "16-true") else 4
        return {
            "weights": total * width,
            "gradients": trained * width,
            "optimizer": trained * width * _OPTIMIZER_STATES,
        }
    return {}


def _check_processor(run: Run, rows: int, config: Any, section: Section) -> None:
    """Template, tokenizer and special tokens against the model's config."""
    tokenizer = run.processor.hf.tokenizer
    if len(tokenizer) > rows:
        section.add(
            "error",
            f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows: model.processor is of another "
            "model.",
        )
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        wanted = getattr(config, name, None)
        found = getattr(run.processor.hf, name, None)
        if wanted is not None and found is not None and wanted != found:
            section.add(
                "error",
                f"{name} is {wanted} in the model's config and {found} in the processor. Take both from one model.",
            )
    limits = run.processor.limits()
    section.facts["limits"] = limits
    section.facts["processor"] = run.processor.fingerprint
    told = ", ".join(f"{name} {value:,}" for name, value in limits.items())
    section.add("ok", f"tokenizer, template and special tokens fit the model; measured limits: {told}")


def _check_data(run: Run, report: Report) -> bool:
    """Verdicts, duplicates, boxes, lengths, and media of a sample of rows. False where there is nothing to plan."""
    section = Section("data")
    report.sections.append(section)
    data = run.data
    asked_bad, asked_overlong = data.on_bad_row, data.overlong
    data.on_bad_row = "skip"  # all rows are judged; whether that would stop the run is said below
    data.overlong = "drop" if asked_overlong == "error" else asked_overlong
    try:
        with _errors_into(section):
            prepare_data(run)
    finally:
        data.on_bad_row, data.overlong = asked_bad, asked_overlong
    judged: Judgement | None = getattr(data, "judgement", None)
    if judged is None:
        return False
    _tell_verdicts(judged, section, bad_is_error=asked_bad == "error", overlong_is_error=asked_overlong == "error")
    _tell_lengths(judged, section)
    limit = run.config.check.decode
    with _bar("rows read", int(np.count_nonzero(judged.index.verdict == 0))) as seen:
        rows = survey_rows(judged.index, seen=seen)
    _tell_group(section, "same", rows.same, "have the media and conversation of an earlier row", "warning")
    _tell_group(section, "same_question", rows.same_question, "ask what an earlier row asks of the same media", "note")
    _tell_group(section, "same_id", rows.same_id, "have the id of an earlier row of their manifest", "note")
    section.facts["boxed"] = rows.num_boxed
    _tell_group(
        section,
        "boxes_off_scale",
        rows.boxes_off_scale,
        "have boxes outside 0 to 1000; Qwen3-VL tells places in thousandths of width and height, not in pixels",
        "warning",
    )
    _tell_group(section, "boxes_reversed", rows.boxes_reversed, "have boxes that end before they begin", "warning")
    trained = judged.rows(TRAINED)
    total = int(np.count_nonzero(judged.index.num_media[trained]))
    dataset = PackDataset(index=judged.index, processor=run.processor, pixels=data.pixels, fits=judged.fits)
    with _bar("rows encoded", total if limit is None else min(limit, total)) as seen:
        media = survey_media(dataset, trained, num_rows=limit, seen=seen)
    section.facts.update(encoded=media.num_rows, turned=media.num_turned)
    if media.faults.num_rows:
        section.add(
            "error",
            f"{media.faults.num_rows} of {media.num_rows} rows that were encoded as in training cannot be used. Mend the "
            "files or drop the rows.",
            media.faults.examples,
        )
    elif media.num_rows:
        which = "every row" if media.num_rows == total else f"{media.num_rows:,} of {total:,} rows"
        section.add("ok", f"{which} with media encoded, pixels and all; the counts are exact")
    if media.num_turned:
        section.add(
            "note",
            f"{media.num_turned} of {media.num_images} images are turned by EXIF: boxes must be of the upright image",
        )
    return len(trained) > 0


def _tell_verdicts(judged: Judgement, section: Section, *, bad_is_error: bool, overlong_is_error: bool) -> None:
    counts = judged.counts()
    section.facts["rows"] = {"read": len(judged.index), **counts}
    section.facts["sources"] = judged.by_source()
    section.add(
        "ok" if counts.get(TRAINED) else "error",
        f"{len(judged.index):,} rows read, {counts.get(TRAINED, 0):,} can be trained on",
        [
            f"{name}: {told['read']:,} read, {told['trained']:,} trained, {told['skipped']:,} skipped, "
            f"{told['overlong']:,} over-long"
            for name, told in judged.by_source().items()
        ],
    )
    for word, count in counts.items():
        if word == TRAINED:
            continue
        rows = judged.rows(word)[:_SHOWN_OF_A_REASON]
        shown = [f"{judged.index.origin(row)}: {judged.finding(row)}" for row in rows.tolist()]
        if word == OVER_LONG:
            mark: Mark = "error" if overlong_is_error else "note"
            remedy = (
                "\nRaise data.max_tokens, lower data.image_max_pixels, or choose data.overlong=shrink_media, drop_turns or drop."
                if overlong_is_error
                else ""
            )
            section.add(mark, f"{count:,} rows ({count / len(judged.index):.1%}) are over-long{remedy}", shown)
        elif word in judged.index.reasons:
            mark = "error" if bad_is_error else "warning"
            remedy = "\nMend them, or set data.on_bad_row=skip to train on the others." if bad_is_error else ""
            section.add(mark, f"{count:,} rows cannot be used: {word}{remedy}", shown)
        else:
            section.add("note", f"{count:,} rows are left out: {word}", shown)
    if (fitted := judged.overlong_cases()["fitted"]) > 0:
        section.add("note", f"{fitted:,} over-long rows are made to fit ({judged.policy})")


def _tell_lengths(judged: Judgement, section: Section) -> None:
    rows = judged.plan_rows()
    if not len(rows):
        return
    tokens, supervised = int(rows.num_tokens.sum()), int(rows.num_supervised_tokens.sum())
    section.facts.update(tokens=tokens, supervised_tokens=supervised, patches=int(rows.num_patches.sum()))
    mark: Mark = "ok" if supervised else "error"
    section.add(mark, f"{tokens:,} tokens, {supervised:,} of them supervised ({supervised / tokens:.1%})")
    for name, values in (("tokens", rows.num_tokens), ("patches", rows.num_patches[rows.num_patches > 0])):
        if len(values):
            bins = histogram(values)
            section.facts[f"{name}_histogram"] = bins
            mean = f"mean {values.mean():,.0f}, longest {values.max():,}"
            section.add("note", f"{name} of a row{' with media' if name == 'patches' else ''}: {mean}", _bars(bins))


def _tell_group(section: Section, name: str, group: Group, text: str, mark: Mark) -> None:
    section.facts[name] = group.num_rows
    if group.num_rows:
        section.add(mark, f"{group.num_rows:,} rows {text}", group.examples)


def _check_plan(run: Run, report: Report) -> None:
    section = Section("plan")
    report.sections.append(section)
    data, trainer = run.data, run.config.trainer
    plan = getattr(data, "plan", None)
    if plan is None:
        section.add("error", "there is no plan: see the errors above")
        return
    ranks = run.trainer.world_size
    steps = data.steps(ranks, run.accumulate)
    first_epoch = int(np.count_nonzero(plan.epochs == plan.epochs[0]))
    group = ranks * run.accumulate
    section.facts.update(
        steps=len(steps),
        steps_per_epoch=-(-first_epoch // group),
        packs=len(plan),
        ranks=ranks,
        accumulate=run.accumulate,
        fill=plan.fill,
    )
    section.add(
        "ok",
        f"{len(steps):,} steps of {group} pack{'s' if group > 1 else ''} ({ranks} rank{'s' if ranks > 1 else ''}, "
        f"{run.accumulate} micro-batch{'es' if run.accumulate > 1 else ''}); {-(-first_epoch // group):,} steps an epoch, "
        f"{len(plan):,} packs, {len(plan.rows) / len(plan):.1f} rows a pack",
    )
    if plan.fill is not None:
        mark: Mark = "ok" if plan.fill >= 0.95 else "warning"
        section.add(mark, f"packs are {plan.fill:.1%} full (data.tokens_per_batch={data.pack_budget.tokens})")
    heaviest = int(np.argmax(plan.num_tokens))
    section.add(
        "note",
        f"the longest pack has {plan.num_tokens[heaviest]:,} tokens, that with most pixels {plan.num_patches.max():,} patches",
    )
    if ranks > 1:
        tokens, patches = (_imbalance(load) for load in steps.rank_loads())
        section.facts.update(token_imbalance=tokens, patch_imbalance=patches)
        mark = "ok" if max(tokens, patches) <= 1.2 else "warning"
        section.add(
            mark, f"the busiest rank of a step has {tokens:.2f} times the mean in tokens, {patches:.2f} in patches"
        )
    if trainer.max_steps and len(steps) < trainer.max_steps - data.start_step:
        section.add("note", f"the data end before trainer.max_steps={trainer.max_steps}: raise trainer.max_epochs")


def _imbalance(load: NDArray[np.float64]) -> float:
    """Largest over mean, averaged over the steps that have any load."""
    means = load.mean(axis=1)
    return float(np.mean(load.max(axis=1)[means > 0] / means[means > 0])) if (means > 0).any() else 1.0


def _check_resources(run: Run, parameters: dict[str, int], report: Report) -> None:
    section = Section("resources")
    report.sections.append(section)
    device = run.trainer.strategy.root_device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {os.cpu_count()} cores"
    section.facts["device"] = kind
    section.add("note", f"trains on {kind}")
    if not parameters:
        return
    needed = sum(parameters.values())
    section.facts["memory_without_activations_bytes"] = needed
    told = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parameters.items())
    section.add("note", f"{needed / 2**30:.2f} GiB on each device before activations ({told})")
    if device.type == "cuda" and needed > (total := torch.cuda.get_device_properties(device).total_memory):
        section.add("error", f"the device has {total / 2**30:.1f} GiB. Freeze more, or shard: trainer=fsdp.")
    place = next(path for path in (run.run_dir, *run.run_dir.parents) if path.exists())
    free = shutil.disk_usage(place).free
    keep = run.config.save.keep or 1
    wanted = parameters["weights"] * 2 + (parameters["weights"] + parameters["optimizer"]) * (keep + 1)
    section.facts.update(disk_free_bytes=free, disk_wanted_bytes=wanted)
    section.add(
        "ok" if free > wanted else "warning",
        f"{free / 2**30:.1f} GiB free where the run is written; {keep} checkpoint{'s' if keep > 1 else ''} and the model take "
        f"about {wanted / 2**30:.1f}",
    )


def _bars(bins: list[tuple[int, int, int]]) -> list[str]:
    most = max(count for _, _, count in bins)
    width = max(len(f"{end:,}") for _, end, _ in bins)
    return [
        f"{start:>{width},} to {end:>{width},}  {'#' * max(1 if count else 0, round(_BAR_WIDTH * count / most)):<{_BAR_WIDTH}}  {count:,}"
        for start, end, count in bins
    ]


@contextmanager
def _bar(name: str, total: int) -> Generator[Callable[[int], object]]:
    """A progress bar on standard error, for passes long enough to wonder."""
    with tqdm(total=total, desc=name, unit=" rows", disable=None, leave=False, delay=1.0) as bar:
        yield bar.update
