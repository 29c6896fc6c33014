"""What a look at every row tells: duplicates, boxes, lengths; and media that do not open."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vlmkit.data.dataset import PackDataset
from vlmkit.data.indexing import build_index
from vlmkit.data.manifest import Source
from vlmkit.data.survey import histogram, survey_media, survey_rows


def row(question: str, answer: str = "A.", **more: object) -> dict:
    return {**more, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


@pytest.fixture
def indexed(processor, tmp_path):
    def make(*rows: dict):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        source = Source(path=path, root=tmp_path, name="rows")
        return build_index([source], processor, cache_dir=tmp_path / "cache"), path

    return make


def test_rows_like_earlier_ones_are_found_and_named(indexed):
    index, path = indexed(
        row("a?", id="1"), row("b?", id="1"), row("a?", id="3"), row("a?", "Else.", id="4"), row("c?"), row("d?")
    )
    found = survey_rows(index)
    assert (found.same.num_rows, found.same.examples) == (1, (f"{path}:3 as {path}:1",))
    assert (found.same_question.num_rows, found.same_question.examples) == (1, (f"{path}:4 as {path}:1",))
    assert (found.same_id.num_rows, found.same_id.examples) == (1, (f"{path}:2 as {path}:1",))


def test_boxes_are_looked_at_where_there_are_some(indexed):
    def boxes(*box: float) -> str:
        return json.dumps([{"bbox_2d": list(box), "label": "cat"}])

    index, path = indexed(
        row("where?", boxes(10, 20, 1000, 400)),
        row("where is it?", boxes(10, 20, 1001, 400)),
        row("and here?", "<box>(500,20),(400,30)</box>"),
        row("a box of [1, 2, 3, 4000] things"),
        row("the version in the box is 1.2.3.4"),
    )
    found = survey_rows(index)
    assert found.num_boxed == 3
    assert found.boxes_off_scale.examples == (f"{path}:2",)
    assert found.boxes_reversed.examples == (f"{path}:3",)


def test_media_are_encoded_as_in_training(indexed, processor, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.effect_noise((120, 80), 90).convert("RGB").save(tmp_path / name, exif=turned)
    cut = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(cut[: len(cut) // 2])  # a sound header and half the pixels
    rows = [row("<image>?", image=name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    index, path = indexed(*rows, row("text"))
    assert not index.verdict.any()
    found = survey_media(PackDataset(index=index, processor=processor, pixels="uint8"), np.arange(4), num_rows=None)
    assert found.num_rows == 3
    assert found.faults.num_rows == 1
    assert found.faults.examples[0].startswith(f"{path}:2: ")
    assert "b.jpg" in found.faults.examples[0]
    assert (found.num_turned, found.num_images) == (2, 2)


def test_a_sample_of_rows_is_spread_over_all(indexed, processor, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    index, _ = indexed(*[row(f"<image>{n}?", image="a.png") for n in range(9)])
    seen = []
    dataset = PackDataset(index=index, processor=processor, pixels="uint8")
    assert survey_media(dataset, np.arange(9), num_rows=3, seen=seen.append).num_rows == 3
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("values", [[5], [1, 2, 3], [7] * 50, list(range(1000)), [1] * 99 + [10**6]])
def test_a_histogram_counts_every_value_once(values):
    bins = histogram(np.array(values))
    assert sum(count for _, _, count in bins) == len(values)
    assert bins[0][0] == min(values)
    assert bins[-1][1] == max(values)
    assert len(bins) <= 13
    for (_, end, _), (start, _, _) in zip(bins, bins[1:], strict=False):
        assert start == end + 1
