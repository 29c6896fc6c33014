"""`curves.png`: loss, learning rate and throughput of a run, from its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmkit.storage import aside_of, put_in_place

_INK, _PALE = "#1f4e79", "#9db7d1"


def draw_curves(lines: Sequence[dict[str, Any]], validations: Sequence[dict[str, Any]], path: Path) -> Path | None:
    """Draw a run's curves.

    Args:
        lines: Of `train.jsonl`.
        validations: Of `validation.jsonl`; their `val/loss` is drawn beside the training loss.
        path: PNG to write.

    Returns:
        The path; None where there is nothing to draw.
    """
    if not lines:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate, speed = figure.subplots(3, 1, sharex=True)
    steps = [line["step"] for line in lines]
    mark = "." if len(steps) < 60 else ""
    losses = [line["loss"] for line in lines]
    loss.plot(steps, losses, color=_PALE, marker=mark, linewidth=1, label="training, each line of the log")
    loss.plot(steps, _smooth(losses), color=_INK, linewidth=1.8, label="training, smoothed")
    held_out = [(one["step"], one["metrics"]["val/loss"]) for one in validations if "val/loss" in one["metrics"]]
    if held_out:
        loss.plot(*zip(*held_out, strict=True), color="#c0504d", marker="o", linewidth=1.5, label="held out")
    loss.set_ylabel("loss per supervised token")
    loss.legend(frameon=False, fontsize=9)
    for name in lines[-1]["lr"]:
        if "/no_decay" not in name:
            rate.plot(steps, [line["lr"].get(name) for line in lines], linewidth=1.5, marker=mark, label=name)
    rate.set_ylabel("learning rate")
    rate.legend(frameon=False, fontsize=9)
    speed.plot(steps, [line["tokens_per_second"] for line in lines], color=_INK, linewidth=1.5, marker=mark)
    speed.set_ylabel("tokens per second")
    speed.set_ylim(bottom=0)
    speed.set_xlabel("optimiser step")
    for axes in (loss, rate, speed):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    aside = aside_of(path)
    figure.savefig(aside, format="png")
    put_in_place(aside, path)
    return path


def _smooth(values: Sequence[float | None]) -> list[float | None]:
    """A running mean that forgets: 0.9 of the mean so far and 0.1 of the new value, corrected for its start."""
    smoothed: list[float | None] = []
    mean = weight = 0.0
    for value in values:
        if value is not None:
            mean, weight = 0.9 * mean + 0.1 * value, 0.9 * weight + 0.1
        smoothed.append(mean / weight if weight else None)
    return smoothed
