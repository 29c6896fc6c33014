"""Loggers by name, and what a run says at its end."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from vlmkit.config import build
from vlmkit.errors import ConfigError
from vlmkit.training.callbacks.steplog import wait_in_words
from vlmkit.training.forecast import told

_INSTALLED_BY = {"tensorboard": "'vlmkit[tensorboard]'", "mlflow": "'vlmkit[mlflow]'"}


def make_loggers(nodes: DictConfig) -> list[Logger]:
    """The loggers of `logger=`, by name.

    Raises:
        ConfigError: one needs a package that is not installed.
    """
    made: list[Logger] = []
    for name, node in nodes.items():
        if not node:
            continue
        try:
            made.append(build(node, cast(Any, Logger)))
        except ImportError as error:
            raise ConfigError(
                f"logger={name}: it needs the package {name}, which is not installed. pip install "
                f"{_INSTALLED_BY.get(str(name), name)}, or choose logger=csv or logger=none (train.jsonl is always written)."
            ) from error
    return made


@contextmanager
def opened(loggers: Sequence[Logger]) -> Generator[None]:
    """Let loggers open what they write to before anything is trained, and close it afterwards; on the first rank.

    Raises:
        ConfigError: one cannot: nobody has logged in, or its server or place cannot be reached.
    """
    for logger in loggers:
        try:
            _ = cast(Any, logger).experiment  # Lightning opens it when it is first asked for
        except Exception as error:
            told = (str(error).strip().splitlines() or [""])[0]
            raise ConfigError(
                f"logger: {type(logger).__name__} could not be started ({type(error).__name__}: {told}). Choose another logger=, "
                "such as csv; for Weights & Biases log in with `wandb login`, or write to the disk with WANDB_MODE=offline."
            ) from error
    status = 1
    try:
        yield
        status = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):  # else the next job of a sweep would go on in the same run
                logger.experiment.finish(exit_code=status)


def end_table(report: Mapping[str, Any], groups: Mapping[str, tuple[int, float]], run_dir: Path) -> str:
    """What was trained, on how much, how fast, and where it lies.

    Args:
        report: As `report.json`.
        groups: Trained parameters and learning rate of each group.
        run_dir: Where it lies.
    """
    last, totals = report["last"], report["trained_on"]
    rows: list[tuple[str, str]] = []
    for name, (count, lr) in groups.items():
        rows.append((f"trained {name}", f"{count:,} parameters, learning rate {lr:g}"))
    rows.append(("steps", f"{report['steps']:,} in {_time(report['seconds'])} (this process)"))
    rows += _forecast_rows(report["forecast"])
    rows.append(
        (
            "on",
            f"{totals['samples']:,} samples, {totals['tokens']:,} tokens, {totals['supervised_tokens']:,} supervised, "
            f"{totals['patches']:,} patches",
        )
    )
    if last:
        rows.append(("loss", _number(last["loss"])))
        rows += [(f"loss of {name}", _number(loss)) for name, loss in last["loss_by_source"].items()]
        mfu = "" if last["mfu"] is None else f", {last['mfu']:.1%} of the device's peak"
        wait = last.get("data_wait_worst", last["data_wait"])  # a log of an earlier version has rank 0's only
        rows.append(("speed", f"{last['tokens_per_second']:,.0f} tokens/s{mfu}; {wait:.1%} waiting for data"))
        if words := wait_in_words(wait):
            rows.append(("data", words))
    if masked := report["rows"]["masked"]["rows"]:
        rows.append(("masked", f"{len(masked)} rows, their media could not be read (first: {masked[0]['where']})"))
    if strange := report["losses"]["skipped_steps"] + report["losses"]["loss_spikes"]:
        rows.append(("strange losses", f"{strange}, in {run_dir / 'suspects.jsonl'}"))
    rows.append(("model", f"{run_dir / 'hf'} (reopened with plain transformers: same tensors, logits and text)"))
    if (best := report["best"]) and best["export"]:
        rows.append(
            ("best model", f"{best['export']} ({best['metric']} {_number(best['value'])} at step {best['step']})")
        )
    rows += [(name, str(run_dir / file)) for name, file in _FILES.items() if (run_dir / file).exists()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([rule, *lines, rule, f"Next: vlmkit-eval ckpt={run_dir}"])


def _forecast_rows(forecast: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What was forecast beside what followed: time of the steps that were taken, an epoch, memory."""
    if not forecast or not forecast["predicted"] or not forecast["followed"]:
        return []
    wanted, found = forecast["predicted"], forecast["followed"]
    share = found["steps"] / max(1, wanted["num_steps"])
    times = [f"{found['steps']:,} steps {told(wanted['seconds'] * share)} forecast, {told(found['seconds'])} taken"]
    if found["epoch_seconds"] is not None:
        times.append(f"an epoch {told(wanted['epoch_seconds'])}, {told(found['epoch_seconds'])}")
    if wanted["peak_bytes"] is not None and found["peak_bytes"] is not None:
        times.append(f"peak memory {wanted['peak_bytes'] / 2**30:.2f} GiB, {found['peak_bytes'] / 2**30:.2f} GiB")
    return [("forecast", "; ".join(times))]


_FILES = {"log": "train.jsonl", "curves": "curves.png", "report": "report.json"}


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
