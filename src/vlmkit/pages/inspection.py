"""The page of `vlmkit-inspect`: what the model is trained on, row by row and pack by pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmkit.data.datamodule import PackedDataModule
from vlmkit.data.judging import TRAINED, Judgement
from vlmkit.pages.document import make_document, write_document
from vlmkit.pages.packs import view_plan
from vlmkit.pages.samples import SampleViewer
from vlmkit.processing.processor import Processor

MAX_REFUSED_PER_REASON = 20


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What the page shows.

    Attributes:
        data: Prepared: counted, judged and, where rows can be trained on, planned.
        processor: What training encodes with.
        rows: Rows of the index to look at, in order.
        num_packs: Packs that become bars.
        stops: Why a training run with these settings would stop before it trains; "" where it would not.
        settings: What else to tell, by name.
    """

    data: PackedDataModule
    processor: Processor
    rows: Sequence[int]
    num_packs: int
    stops: str
    settings: Mapping[str, str]


def write_inspection(inspection: Inspection, path: Path) -> Path:
    """Write the page: one file that needs no other."""
    return write_document(path, inspection_page(inspection))


def inspection_page(inspection: Inspection) -> str:
    """The page as one HTML text."""
    judgement = inspection.data.judgement
    viewer = SampleViewer(judgement, inspection.processor)
    told = {
        "name": inspection.data.name,
        "stops": inspection.stops,
        "num_rows": len(judgement.index),
        "counts": judgement.counts(),
        "refused": list(_refused(judgement)),
        "settings": {**_settings(inspection), **inspection.settings},
        "template": inspection.processor.hf.chat_template,
    }
    return make_document(
        name="inspect",
        title=f"{inspection.data.name}: what the model is trained on",
        heading="What the model is trained on",
        data={
            "told": told,
            "plan": _plan(inspection),
            "samples": [viewer.show(row).to_json() for row in inspection.rows],
        },
    )


def _plan(inspection: Inspection) -> dict[str, Any] | None:
    """The packs; None where there is nothing to train on."""
    data = inspection.data
    rows = data.judgement.plan_rows()
    if not len(rows):
        return None
    return view_plan(
        data.plan,
        rows,
        data.index,
        num_packs=inspection.num_packs,
        merge_size=inspection.processor.geometry.merge_size,
        looked_at=list(inspection.rows),
    ).to_json()


def _refused(judgement: Judgement) -> list[dict[str, Any]]:
    """By reason: how many rows are not trained, and the first of them."""
    told: list[dict[str, Any]] = []
    for word, count in judgement.counts().items():
        if word == TRAINED:
            continue
        rows = judgement.rows(word)[:MAX_REFUSED_PER_REASON].tolist()
        first = [{"where": str(judgement.index.origin(row)), "finding": judgement.finding(row)} for row in rows]
        told.append({"reason": word, "count": count, "first": first})
    return told


def _settings(inspection: Inspection) -> dict[str, str]:
    data, processor = inspection.data, inspection.processor
    budget = data.pack_budget
    limits = processor.limits()
    held = f"{budget.rows} rows" if budget.tokens is None else f"{budget.tokens:,} tokens"
    if budget.patches is not None:
        held += f" and {budget.patches:,} vision patches"
    return {
        "Manifests": "\n".join(
            f"{source.path} (media under {source.root}; weight {source.weight:g})" for source in data.sources
        ),
        "A pack holds": f"at most {held}",
        "Order": f"{data.order}, seed {data.seed}" + (", the heaviest pack first" if data.heaviest_first else ""),
        "Longest row": f"{data.max_tokens:,} tokens; longer ones: {data.overlong}" if data.max_tokens else "any",
        "Pixels of an image": f"{limits['image_min_pixels']:,} to {limits['image_max_pixels']:,}",
        "Pixels of a video": f"{limits['video_min_pixels']:,} to {limits['video_max_pixels']:,}, all frames together; "
        f"{limits['video_fps']:g} frames a second, at most {limits['video_max_frames']:g}",
        "Processor": processor.fingerprint,
    }
