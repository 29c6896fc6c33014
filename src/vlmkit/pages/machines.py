"""A picture of estimates: the memory of the fullest rank on each machine, by kind, beside what the machine has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.storage import aside_of, put_in_place

if TYPE_CHECKING:
    from vlmkit.preflight.estimate import Estimate

_COLOURS = {
    "parameters": "#1f4e79",
    "gathered": "#5b8db8",
    "gradients": "#c0504d",
    "optimizer": "#e0a458",
    "batch": "#7a7a7a",
    "activations": "#5a9367",
    "temporary": "#a9c9a4",
    "workspace (assumed)": "#b9a5c9",
    "framework (assumed)": "#cfcfcf",
}
_GIB = 2**30


def draw_memory(estimates: Sequence[Estimate], path: Path) -> Path:
    """Draw a stacked bar for each estimate, and a line where its machine is full.

    Args:
        estimates: In the order of the bars, from the top.
        path: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.6 + 0.55 * len(estimates)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labels = [f"{estimate.request}\n{estimate.strategy}" for estimate in estimates]
    places = range(len(estimates))
    left = [0.0] * len(estimates)
    for kind, colour in _COLOURS.items():
        widths = [_bytes_of(estimate, kind) / _GIB for estimate in estimates]
        if any(widths):
            axes.barh(places, widths, left=left, color=colour, label=kind, height=0.6)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, estimate in enumerate(estimates):
        capacity = estimate.memory.capacity / _GIB
        axes.plot([capacity, capacity], [place - 0.42, place + 0.42], color="black", linewidth=2)
        fits = "" if estimate.memory.fits else "does not fit"
        axes.annotate(fits, (left[place], place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(places, labels, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("memory of the fullest rank (GiB); the black line is what the GPU has")
    figure.legend(frameon=False, fontsize=8, ncols=5, loc="outside lower center")
    axes.spines[["top", "right"]].set_visible(False)
    aside = aside_of(path)
    figure.savefig(aside, format="png")
    put_in_place(aside, path)
    return path


def _bytes_of(estimate: Estimate, kind: str) -> int:
    memory = estimate.memory
    assumed = {"workspace (assumed)": memory.workspace, "framework (assumed)": memory.framework}
    return assumed.get(kind, memory.tensors.get(kind, 0))
