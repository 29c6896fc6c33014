"""Seeded faults of many kinds among good rows: each refused by its file, row and reason, none missed, none invented."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmkit.data.indexing import build_index
from vlmkit.data.manifest import Source
from vlmkit.errors import DataError
from vlmkit.processing.processor import Processor

Row = dict[str, Any]
Fault = Callable[[Row, random.Random], object]


def good_row(rng: random.Random, root: Path) -> Row:
    """A row that can be used: text, images, a video of frames, several turns, words that look like markup."""
    words = ["red", "blue", "assistant", "<|im_end|>", "<b>", "café", "\\n", '"so"', "😀", "image", "[{"]

    def text(most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, most)))

    kind = rng.choice(["text", "image", "images", "video", "both"])
    markers = {"text": 0, "image": 1, "images": rng.randint(2, 3), "video": 0, "both": 1}[kind]
    paths = [rng.choice(["a.png", "sub/b.png"]) for _ in range(markers)]
    row: Row = {"id": rng.randrange(1000)}
    if paths:
        row[rng.choice(["image", "images"])] = paths[0] if len(paths) == 1 and rng.random() < 0.5 else paths
    if kind in ("video", "both"):
        row["video"] = ["a.png", "c.png"]
    turns = [{"from": rng.choice(["human", "user"]), "value": "<image>" * markers + f"{text(6)}?"}]
    if "video" in row:
        turns[0]["value"] = f"{turns[0]['value']}\n<video>"
    turns.append({"from": rng.choice(["gpt", "assistant"]), "value": text(8)})
    for _ in range(rng.randint(0, 2)):
        turns += [{"from": "human", "value": text(5)}, {"from": "gpt", "value": text(5)}]
    if rng.random() < 0.3:
        turns.insert(0, {"from": "system", "value": text(4)})
    return row | {"conversations": turns}


def turns_of(row: Row, speaker: str) -> list[dict[str, Any]]:
    names = {"human": ("human", "user"), "gpt": ("gpt", "assistant")}[speaker]
    return [turn for turn in row["conversations"] if turn["from"] in names]


def changed(change: Callable[[Row, random.Random], object]) -> Fault:
    """A fault that changes a good row in place."""

    def make(row: Row, rng: random.Random) -> object:
        change(row, rng)
        return row

    return make


def with_image(path: str) -> Fault:
    def make(row: Row, rng: random.Random) -> object:
        del rng
        turns = [{"from": "human", "value": "<image> this?"}, {"from": "gpt", "value": "that"}]
        return {"image": path, "conversations": turns}

    return make


FAULTS: dict[str, tuple[str, Fault]] = {
    "cut short": ("bad_json", lambda row, rng: json.dumps(row)[: -rng.randint(1, 20)].encode()),
    "single quotes": ("bad_json", lambda row, rng: str(row).encode()),
    "a number of no JSON": ("bad_json", lambda row, rng: json.dumps(row | {"x": float("nan")}).encode()),
    "a list": ("not_an_object", lambda row, rng: [row]),
    "a string": ("not_an_object", lambda row, rng: "row"),
    "no conversations": ("no_conversations", changed(lambda row, rng: row.pop("conversations"))),
    "empty conversations": ("no_conversations", changed(lambda row, rng: row.update(conversations=[]))),
    "a turn that is text": ("bad_turn", changed(lambda row, rng: row["conversations"].append("hello"))),
    "a turn without value": ("bad_turn", changed(lambda row, rng: turns_of(row, "gpt")[-1].pop("value"))),
    "a number as value": ("bad_turn", changed(lambda row, rng: turns_of(row, "gpt")[0].update(value=7))),
    "an unknown role": (
        "unknown_role",
        changed(lambda row, rng: rng.choice(row["conversations"]).update({"from": rng.choice(["bing", "GPT", ""])})),
    ),
    "an empty answer": (
        "empty_turn",
        changed(lambda row, rng: turns_of(row, "gpt")[-1].update(value=rng.choice(["", " \n"]))),
    ),
    "no answer": (
        "no_assistant_turn",
        changed(lambda row, rng: row.update(conversations=turns_of(row, "human"))),
    ),
    "a placeholder too many": (
        "placeholder_count",
        changed(lambda row, rng: turns_of(row, "human")[-1].update(value="<image> <image> <image> <image> and?")),
    ),
    "a video without placeholder": (
        "placeholder_count",
        lambda row, rng: {
            "video": ["a.png"],
            "conversations": row["conversations"][:0]
            + [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "that"}],
        },
    ),
    "a placeholder in an answer": (
        "placeholder_place",
        changed(lambda row, rng: turns_of(row, "gpt")[0].update(value="see <image>")),
    ),
    "a number as image": ("bad_media", changed(lambda row, rng: row.update(image=5) or row.pop("images", None))),
    "an object in images": (
        "bad_media",
        changed(lambda row, rng: row.update(images=[{"path": "a.png"}]) or row.pop("image", None)),
    ),
    "image and images": ("ambiguous_media", changed(lambda row, rng: row.update(image="a.png", images=["a.png"]))),
    "a URL": ("url", with_image("https://example.org/a.png")),
    "data in the row": ("url", with_image("data:image/png;base64,AAAA")),
    "an absolute path": ("absolute_path", with_image("/etc/hostname")),
    "a path out of the root": ("path_leaves_root", with_image("sub/../../a.png")),
    "a missing file": ("missing_media", with_image("gone.png")),
    "a directory": ("missing_media", with_image("sub")),
    "no image": ("unreadable_media", with_image("text.png")),
    "a ribbon": ("aspect_ratio", with_image("ribbon.png")),
}


def write_media(root: Path) -> None:
    (root / "sub").mkdir(parents=True)
    for name, size in {"a.png": (64, 40), "sub/b.png": (33, 70), "c.png": (64, 40), "ribbon.png": (402, 2)}.items():
        Image.new("RGB", size, "green").save(root / name)
    (root / "text.png").write_text("no image")


@pytest.mark.parametrize(
    ("layout", "number"), [("jsonl", 81), ("json", 81), pytest.param("jsonl", 600, marks=pytest.mark.slow)]
)
def test_every_fault_is_found_where_it_is_and_no_other(
    layout: str, number: int, tmp_path: Path, processor: Processor
) -> None:
    rng = random.Random(number)
    write_media(tmp_path / "media")
    kinds = [*FAULTS] * (number // 2 // len(FAULTS) + 1)
    wanted: list[str | None] = []
    texts: list[bytes] = []
    planned: list[str | None] = [*kinds[: number // 2], *[None] * (number - number // 2)]
    rng.shuffle(planned)
    for kind in planned:
        row: object = good_row(rng, tmp_path)
        reason = None
        if kind is not None:
            reason, fault = FAULTS[kind]
            row = fault(row, rng)
        texts.append(row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=rng.random() < 0.5).encode())
        wanted.append(reason)
    path = tmp_path / "media" / f"rows.{layout}"
    path.write_bytes(b"\n".join(texts) if layout == "jsonl" else b"[\n" + b",\n".join(texts) + b"\n]")
    source = Source(path=path, root=path.parent, name="rows")
    if layout == "json":  # an array is whole or not: one row that is no JSON, and what is after it cannot be told
        kept = [(text, reason) for text, reason in zip(texts, wanted, strict=True) if reason != "bad_json"]
        texts, wanted = [text for text, _ in kept], [reason for _, reason in kept]
        path.write_bytes(b"[" + b", ".join(texts) + b"]")
    index = build_index([source], processor, cache_dir=tmp_path / "cache")
    assert len(index) == len(texts)
    assert [index.reason(row) for row in range(len(index))] == wanted
    for fault in index.faults:
        assert index.origin(fault.row).row == fault.row + 1
        assert fault.finding.endswith((".", ".)")), fault.finding
        if fault.reason not in index.media_reasons:
            with pytest.raises(DataError, match=rf"^{path}:{fault.row + 1}: ") as caught:
                index.conversation(fault.row)
            assert (caught.value.reason, caught.value.finding) == (fault.reason, fault.finding)


def test_lines_of_an_array_lose_only_the_bad_one(tmp_path: Path, processor: Processor) -> None:
    write_media(tmp_path / "media")
    rng = random.Random(1)
    texts = [json.dumps(good_row(rng, tmp_path)) for _ in range(6)]
    texts[3] = '{"conversations": [}'
    path = tmp_path / "media" / "rows.json"
    path.write_text("[\n" + ",\n".join(texts) + "\n]\n")
    index = build_index([Source(path=path, root=path.parent, name="rows")], processor, cache_dir=tmp_path / "cache")
    assert [index.reason(row) for row in range(len(index))] == [None, None, None, "bad_json", None, None]
    assert str(index.origin(3)) == f"{path}:4"
