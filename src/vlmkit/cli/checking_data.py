"""The sections `data` and `plan` of a check: index, verdicts, survey of the rows, packs and steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from vlmkit.cli.checks import Checked
from vlmkit.cli.findings import Mark, Section, many
from vlmkit.cli.training import make_lora, most_packs, needs_media, take_up
from vlmkit.data.datamodule import PackedDataModule
from vlmkit.data.indexing import bad_rows
from vlmkit.data.judging import OVER_LONG, TEXT_ONLY, TRAINED, Judgement, refusal_of_bad_rows
from vlmkit.data.plan import PlanRows
from vlmkit.data.survey.boxes import FRAME
from vlmkit.data.survey.decoding import MIN_ROWS_FOR_WORKERS, DecodedRows, decode_rows, draw
from vlmkit.data.survey.lengths import histogram
from vlmkit.data.survey.reading import MAX_LISTED, Reading, Repeats, read_rows
from vlmkit.data.survey.shape import check_shape
from vlmkit.errors import ConfigError, DataError, Origin
from vlmkit.storage import written_aside

_PLACEHOLDERS = ("placeholder_count", "placeholder_place")
_FEW_STEPS = 50
_SMALL_PIXELS = 65_536
_MANY_TIMES = 4
"""Rows of so many times the patches of a small image are told of on a CPU."""


def data_section(checked: Checked) -> Section:
    """What becomes of every row, and what is worth knowing of the rows that are trained."""
    section = Section(name="data")
    data, processor = checked.data, checked.processor
    if data is None:
        section.add("note", "not looked at: there is no data (see config)")
        return section
    if processor is None:
        with section.guarded():
            _look_at_shape(checked, data, section)
        return section
    on_bad_row, max_bad_rows, overlong = data.on_bad_row, data.max_bad_rows, data.overlong
    with section.guarded():
        _count(checked, data, section)
    if not checked.counted:
        return section
    data.on_bad_row, data.max_bad_rows = "skip", None  # everything is to be told, not the first fault only
    data.overlong = "drop" if overlong == "error" else overlong
    with section.guarded():
        data.judge_rows(
            require_media=needs_media(checked.freeze, make_lora(checked.config.model.lora)) if checked.freeze else False
        )
        checked.judged = True
    if not checked.judged:
        return section
    index = data.index
    refusal = refusal_of_bad_rows(
        int(np.count_nonzero(index.verdict)), len(index), on_bad_row=on_bad_row, max_bad_rows=max_bad_rows
    )
    _tell_verdicts(data.judgement, section, refusal=refusal, overlong=overlong)
    with section.guarded():
        faults = ((index.origin(fault.row), fault.reason, fault.finding) for fault in bad_rows(index, processor))
        _list_bad_rows(checked, section, faults)
    with section.guarded():
        _survey(checked, data, section)
    return section


def _look_at_shape(checked: Checked, data: PackedDataModule, section: Section) -> None:
    """What can be told of rows without a processor."""
    section.add("note", "rows are not counted: there is no processor (see model). Their form and media are looked at")
    faults: list[tuple[Origin, str, str]] = []
    found = check_shape(
        data.sources,
        cache_dir=data.cache_dir,
        allow_absolute_paths=data.allow_absolute_paths,
        reading=data.reading,
        limit_each=checked.config.check.limit,
        report=lambda origin, error: faults.append((origin, error.reason, error.finding)),
    )
    _list_bad_rows(checked, section, faults)
    section.figures |= {"rows": found.num_rows, "verdicts": found.counts}
    for told in found.broken:
        section.add("error", told)
    if found.counts:
        told = [(f"{origin}: {fault.finding}", fault.reason) for origin, fault in found.first]
        refusal = refusal_of_bad_rows(
            len(faults), found.num_rows, on_bad_row=data.on_bad_row, max_bad_rows=data.max_bad_rows
        )
        _tell_bad(section, found.counts, found.num_rows, told, refusal=refusal)
    else:
        section.add("ok", f"{many(found.num_rows, 'row')} read, all well formed and their media there")


def _tell_bad(
    section: Section, bad: dict[str, int], num_rows: int, first: list[tuple[str, str]], *, refusal: str
) -> None:
    """Rows that cannot be used: totals by reason, the first of each as (message, reason), and why they stop a run."""
    lines: list[str] = []
    for reason, count in bad.items():
        known = [message for message, of in first if of == reason][:MAX_LISTED]
        lines += [f"{reason}: {count:,}", *(f"  {message}" for message in known)]
        if count > len(known):
            lines.append(f"  ... and {count - len(known):,} more")
    remedy = refusal or "They are skipped and counted (data.on_bad_row=skip)."
    section.add(
        "error" if refusal else "warning",
        f"{sum(bad.values()):,} of {num_rows:,} rows cannot be used. {remedy}",
        lines,
    )


def _list_bad_rows(checked: Checked, section: Section, faults: Iterable[tuple[Origin, str, str]]) -> None:
    """Write every bad row to the file of `check.bad_rows`, a row a line, where one is named.

    Raises:
        ConfigError: the file cannot be written.
    """
    if not (wanted := checked.config.check.bad_rows):
        return
    path = Path(wanted).expanduser()
    num_rows = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside, open(aside, "wb") as file:
            for origin, reason, finding in faults:
                entry = {"file": origin.file, "row": origin.row, "reason": reason, "finding": finding}
                file.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
                num_rows += 1
    except OSError as error:
        raise ConfigError(f"check.bad_rows: {path} cannot be written ({error.strerror}). Name another file.") from error
    section.add("note", f"{many(num_rows, 'bad row')} listed in {path}")


def _count(checked: Checked, data: PackedDataModule, section: Section) -> None:
    """Make the index; a manifest that is broken as a whole is told and left out, so that the others are looked at."""
    assert checked.processor is not None
    while data.sources:
        try:
            data.count(checked.processor, limit_each=checked.config.check.limit)
            checked.counted = True
            return
        except DataError as error:
            broken = [one for one in data.sources if error.origin and str(one.path) == error.origin.file]
            if not broken:
                raise
            section.add("error", str(error))
            data.sources = [source for source in data.sources if source not in broken]


def _tell_verdicts(judged: Judgement, section: Section, *, refusal: str, overlong: str) -> None:
    index, counts = judged.index, judged.counts()
    bad = index.counts_by_reason()
    section.figures |= {"rows": len(index), "verdicts": counts, "sources": judged.by_source()}
    section.add(
        "ok",
        f"{many(len(index), 'row')} read from {many(len(index.sources), 'manifest')}, {counts.get(TRAINED, 0):,} usable",
    )
    if bad:
        first = [(f"{index.origin(fault.row)}: {fault.finding}", fault.reason) for fault in index.faults]
        _tell_bad(section, bad, len(index), first, refusal=refusal)
    section.figures["first_faults"] = [
        {"where": str(index.origin(fault.row)), "reason": fault.reason, "finding": fault.finding}
        for fault in index.faults
    ]
    wrong = {reason: bad[reason] for reason in _PLACEHOLDERS if reason in bad}
    if not wrong:
        section.add("ok", "placeholders and media agree in every row")
    else:
        section.add("note", f"placeholders and media disagree in {many(sum(wrong.values()), 'row')} (listed above)")
    if text_only := counts.get(TEXT_ONLY, 0):
        section.add(
            "note",
            f"{many(text_only, 'row')} without media left out: text alone trains nothing where only the merger learns",
        )
    _tell_overlong(judged, section, overlong=overlong)


def _tell_overlong(judged: Judgement, section: Section, *, overlong: str) -> None:
    num_long = len(judged.overlong)
    share = num_long / max(1, len(judged.index))
    section.figures["overlong"] = {"rows": num_long, "share": share, "policy": overlong}
    if not num_long:
        if judged.max_tokens is not None:
            section.add("ok", f"no row is longer than data.max_tokens={judged.max_tokens}")
        return
    dropped = judged.counts().get(OVER_LONG, 0)
    longest = judged.index.num_tokens[judged.overlong]
    order = np.argsort(-longest, kind="stable")[:MAX_LISTED]
    listed = [f"{judged.index.origin(int(judged.overlong[at]))}: {longest[at]:,} tokens" for at in order]
    told = f"{many(num_long, 'row')} ({share:.1%}) longer than data.max_tokens={judged.max_tokens}"
    if overlong == "error":
        remedy = "Raise it, lower data.image_max_pixels, or choose data.overlong=shrink_media, drop_turns or drop."
        section.add("error", f"{told}. {remedy}", listed)
        return
    mark: Mark = "warning" if dropped else "note"
    section.add(
        mark, f"{told}: {num_long - dropped:,} made to fit, {dropped:,} dropped (data.overlong={overlong})", listed
    )


def _survey(checked: Checked, data: PackedDataModule, section: Section) -> None:
    """Look at the rows that would be trained."""
    rows = data.judgement.plan_rows()
    if not len(rows):
        return
    _tell_lengths(rows, section)
    assert checked.processor is not None
    seen = checked.shown(rows.row.tolist(), "repeats and boxes", total=len(rows))
    _tell_reading(read_rows(data.index, rows.row, checked.processor, seen), data, section)
    _decode(checked, data, rows, section)


def _tell_lengths(rows: PlanRows, section: Section) -> None:
    supervised, tokens = int(rows.num_supervised_tokens.sum()), int(rows.num_tokens.sum())
    section.figures |= {"tokens": tokens, "supervised_tokens": supervised, "patches": int(rows.num_patches.sum())}
    share = supervised / tokens
    section.add("ok", f"{tokens:,} tokens, {supervised:,} of them supervised ({share:.1%})")
    for name, values in (("tokens", rows.num_tokens), ("patches", rows.num_patches[rows.num_patches > 0])):
        if len(values):
            found = histogram(values)
            section.figures[f"{name}_per_row"] = found.to_json()
            of = "row" if name == "tokens" else "row with media"
            section.add("ok", f"{name} of a {of}: {found.summary()}", found.bars())


def _tell_reading(reading: Reading, data: PackedDataModule, section: Section) -> None:
    kinds: tuple[tuple[str, Repeats, str], ...] = (
        ("same_content", reading.same_content, "with the media and texts of an earlier row. Drop them, or mean it."),
        (
            "same_question",
            reading.same_question,
            "with the media and question of an earlier row, but other answers",
        ),
        ("same_id", reading.same_id, "with the id of an earlier row of the manifest"),
    )
    for name, found, told in kinds:
        section.figures[name] = found.num_rows
        if found.num_rows:
            listed = [f"{data.index.origin(row)} is as {data.index.origin(first)}" for row, first in found.first]
            section.add(
                "note" if name == "same_question" else "warning", f"{many(found.num_rows, 'row')} {told}", listed
            )
    if not any(found.num_rows for _, found, _ in kinds):
        section.add("ok", "no row repeats another: content, media and question, and ids differ")
    if reading.num_typed:
        section.figures["typed_special_tokens"] = reading.num_typed
        listed = [f"{data.index.origin(row)}: {token}" for row, token in reading.first_typed]
        section.add(
            "note",
            f"{many(reading.num_typed, 'row')} with a special token typed in a text; it stays plain text",
            listed,
        )
    section.figures["unread_fields"] = reading.unread
    if reading.unread:
        listed = [f"{name}: {many(count, 'row')}" for name, count in reading.unread.items()]
        section.add("note", f"{many(len(reading.unread), 'field')} of the rows not read:", listed)
    _tell_boxes(reading, data, section)


def _tell_boxes(reading: Reading, data: PackedDataModule, section: Section) -> None:
    boxes = reading.boxes
    if not boxes.num_rows:
        return
    frame = boxes.frame()
    section.figures["boxes"] = {
        "rows": boxes.num_rows,
        "boxes": boxes.num_boxes,
        "wrong_rows": boxes.num_wrong_rows,
        "frame": frame,
    }
    listed = [f"{data.index.origin(row)}: {told}" for row, told in boxes.first]
    told = (
        f"{boxes.num_boxes:,} grounding {'box' if boxes.num_boxes == 1 else 'boxes'} in {many(boxes.num_rows, 'row')}"
    )
    if frame in ("pixels", "shares"):
        seem = "they lie within the pixels of their images" if frame == "pixels" else "they lie in 0..1"
        section.add(
            "warning",
            f"{told}: {seem}, so they seem to be in {frame}; Qwen3-VL counts 0..{FRAME} along width and height. "
            "Convert them.",
            listed,
        )
    elif boxes.num_wrong_rows:
        section.add("warning", f"{told}; wrong in {many(boxes.num_wrong_rows, 'row')}", listed)
    else:
        section.add("ok", f"{told}, all within 0..{FRAME}")


def _decode(checked: Checked, data: PackedDataModule, rows: PlanRows, section: Section) -> None:
    """Decode media as a training would."""
    wanted = checked.config.check.decode
    with_media = rows.row[rows.num_patches > 0]
    if wanted is False or not len(with_media):
        section.figures["decoded_rows"] = 0
        return
    chosen = draw(with_media, None if wanted is True else wanted, seed=checked.config.seed)
    decoding = DecodedRows(data.pack_dataset(), chosen)
    found = decode_rows(decoding, num_workers=data.num_workers)
    checked.decoded = list(
        checked.shown(found, "decoding media", total=len(chosen), always=len(chosen) >= MIN_ROWS_FOR_WORKERS)
    )
    broken = [one for one in checked.decoded if one.reason]
    turned = sum(one.turned for one in checked.decoded)
    section.figures |= {
        "decoded_rows": len(chosen),
        "undecodable": dict(Counter(one.reason for one in broken)),
        "turned_by_exif": turned,
    }
    of = (
        f"{len(chosen):,} of {len(with_media):,} rows with media"
        if len(chosen) < len(with_media)
        else "all rows with media"
    )
    if broken:
        listed = [f"{data.index.origin(one.row)}: {one.finding}" for one in broken[:MAX_LISTED]]
        more = "" if len(chosen) == len(with_media) else " check.decode=true looks at all."
        section.add(
            "error",
            f"{many(len(broken), 'row')} failed to decode ({of} were tried).{more} Mend or drop them.",
            listed,
        )
    else:
        section.add("ok", f"media of {of} were decoded and agree with their counts")
    if turned:
        section.add("note", f"{many(turned, 'image')} among these turned or mirrored by EXIF; they are trained upright")


def plan_section(checked: Checked) -> Section:
    """Packs and steps of the run."""
    section = Section(name="plan")
    data = checked.data
    if not checked.judged or data is None:
        section.add("note", "not looked at: the rows are not known (see data)")
        return section
    with section.guarded():
        trainer = checked.config.trainer
        group = checked.num_ranks * checked.accumulate
        data.plan_packs(num_epochs=trainer.max_epochs, max_packs=most_packs(trainer.max_steps, checked.state, group))
        checked.planned = True
    if not checked.planned:
        return section
    with section.guarded():
        if checked.state is not None and checked.freeze is not None and checked.config.check.limit is None:
            take_up(data, checked.freeze, checked.state, checked.checkpoint)
    checked.num_steps = data.num_steps(checked.num_ranks, checked.accumulate)
    if checked.state is not None and data.start_step == checked.num_steps:
        section.add("note", f"nothing is left to train: {checked.checkpoint} is at the end of its plan")
    _tell_plan(checked, data, section)
    return section


def _tell_plan(checked: Checked, data: PackedDataModule, section: Section) -> None:
    plan, ranks, accumulate = data.plan, checked.num_ranks, checked.accumulate
    group = ranks * accumulate
    packs_of_epochs = np.bincount(plan.epochs)
    steps_of_epochs = (packs_of_epochs / group).tolist()
    section.figures |= {
        "steps": checked.num_steps,
        "steps_per_epoch": steps_of_epochs,
        "packs": len(plan),
        "ranks": ranks,
        "accumulate": accumulate,
        "fill": plan.fill,
        "plan": plan.key,
        "sources": _drawn(data),
    }
    each = f"{steps_of_epochs[0]:,.1f} steps an epoch" if len(steps_of_epochs) > 1 else "one epoch"
    section.add(
        "ok",
        f"{many(checked.num_steps or 0, 'step')} ({each}): {many(len(plan), 'pack')} for {many(ranks, 'rank')}, "
        f"{many(accumulate, 'pack')} a step and rank",
    )
    _tell_packs(data, section)
    _tell_balance(data, section, ranks, accumulate)
    _tell_slow(checked, data, section)
    wanted = checked.config.trainer.max_steps
    epochs = checked.config.trainer.max_epochs
    if wanted is None and epochs and checked.num_steps and checked.num_steps < _FEW_STEPS:
        more = epochs * -(-_FEW_STEPS // checked.num_steps)
        section.add(
            "note", f"in {many(checked.num_steps, 'step')} little is learnt; trainer.max_epochs={more} gives more"
        )
    if type(wanted) is int and checked.num_steps is not None and checked.num_steps < wanted:
        section.add("note", f"the data end before trainer.max_steps={wanted}; raise trainer.max_epochs for more")
    if idle := (-len(plan)) % ranks:
        section.add("note", f"at the last step {idle} of {ranks} ranks have no pack")


def _tell_packs(data: PackedDataModule, section: Section) -> None:
    plan = data.plan
    heaviest, rows = int(plan.num_tokens.max()), np.diff(plan.starts)
    section.figures["pack_tokens"] = histogram(plan.num_tokens).to_json()
    told = f"a pack holds {rows.mean():,.1f} rows, {plan.num_tokens.mean():,.0f} tokens (most {heaviest:,}), {plan.num_patches.mean():,.0f} patches (most {int(plan.num_patches.max()):,})"
    if plan.fill is None:
        section.add("ok", told)
    else:
        low = plan.fill < 0.9
        hint = ". Raise data.tokens_per_batch, or data.patches_per_batch if that fills first" if low else ""
        section.add("warning" if low else "ok", f"packs are {plan.fill:.1%} full; {told}{hint}")


def _tell_slow(checked: Checked, data: PackedDataModule, section: Section) -> None:
    """Large images where there is only a CPU, and what makes them small."""
    if checked.trainer is None or checked.trainer.strategy.root_device.type != "cpu" or checked.processor is None:
        return
    patches = data.index.num_patches[data.plan.rows]
    small = _SMALL_PIXELS // checked.processor.geometry.patch_size**2
    if (times := float(patches.mean()) / small) > _MANY_TIMES:
        section.add(
            "note",
            f"{patches.mean():,.0f} patches a row are slow without a GPU; data.image_max_pixels={_SMALL_PIXELS} makes images "
            f"of {small} patches: about {times:.0f} times less work",
        )


def _tell_balance(data: PackedDataModule, section: Section, ranks: int, accumulate: int) -> None:
    if ranks < 2:
        return
    tokens, patches = data.steps(ranks, accumulate).rank_loads()
    uneven = {
        name: float((loads.max(1) / np.maximum(loads.mean(1), 1)).mean())
        for name, loads in (("tokens", tokens), ("patches", patches))
    }
    section.figures["largest_over_mean"] = uneven
    high = max(uneven.values()) > 1.25
    told = f"ranks: largest over mean {uneven['tokens']:.2f} in tokens, {uneven['patches']:.2f} in patches"
    hint = "; ranks wait for the largest. Try data.tokens_per_batch with data.patches_per_batch" if high else ""
    section.add("warning" if high else "ok", told + hint)


def _drawn(data: PackedDataModule) -> dict[str, dict[str, Any]]:
    """What each source gives to the plan."""
    source = data.index.source[data.plan.rows]
    tokens = data.index.num_tokens[data.plan.rows].astype(np.int64)
    total = max(1, int(tokens.sum()))
    names: Sequence[str] = [one.name for one in data.sources]
    return {
        name: {
            "weight": data.sources[number].weight,
            "rows": int((source == number).sum()),
            "share_of_tokens": float(tokens[source == number].sum()) / total,
        }
        for number, name in enumerate(names)
    }
