"""Truncation cuts image tokens: whatever is done about a long row, each medium keeps all its tokens or goes as a whole."""

from __future__ import annotations

import pytest

from tests.data.conftest import said
from vlmkit.data.dataset import PackDataset
from vlmkit.errors import DataError

MOST = 60


@pytest.fixture
def path(corpus):
    """Two rows that fit; a large image; an image in front of many turns; text alone that is too long."""
    corpus.draw("large.png", 320, 320)
    turns = [{"from": who, "value": f"{text} {number} " * 4} for number in range(9) for who, text in (("human", "what"), ("gpt", "so"))]  # fmt: skip
    turns[0] = {"from": "human", "value": "<image> " + turns[0]["value"]}
    return corpus.write(
        [
            corpus.rows["text"],
            corpus.rows["image"],
            said("<image>\nwhat is this?", image="large.png"),
            {"image": "wide.png", "conversations": turns},
            said("why " * 200),
        ]
    )


def prepared(data, processor):
    data.prepare(processor=processor, num_epochs=1, max_packs=None, require_media=False)
    return data


@pytest.mark.parametrize(
    ("policy", "trained", "done"),
    [
        ("drop", [0, 1], ["dropped"] * 3),
        ("shrink_media", [0, 1, 2], ["media shrunk", "dropped", "dropped"]),
        ("drop_turns", [0, 1, 3], ["dropped", "turns after the first", "dropped"]),
    ],
)
def test_media_are_whole_under_every_policy(policy, trained, done, path, processor, datamodule):
    data = prepared(datamodule(path, max_tokens=MOST, overlong=policy, batch_size=1), processor)
    dataset = PackDataset(index=data.index, processor=processor, pixels="uint8", fits=data.judgement.fits)
    slots = list(data.steps(1, 1).slots(0))
    assert sorted(slot.rows[0] for slot in slots) == trained
    for slot in slots:
        batch = dataset[slot]
        assert batch["seqlens"][0] <= MOST
        patches = len(batch["still_patches"]) if batch["num_media"] else 0
        assert len(batch["visual_positions"]) * processor.geometry.merge_size**2 == patches
        assert batch["num_media"] == (slot.rows[0] > 0), "the image of a trained row is there"
        assert len(batch["targets"]) > 0
    told = data.accounting()
    assert [case["where"] for case in told["overlong"]["rows"]] == [f"{path}:{row}" for row in (3, 4, 5)]
    assert all(case["done"].startswith(word) for case, word in zip(told["overlong"]["rows"], done, strict=True))
    rows = told["sources"]["rows"]
    assert (rows["read"], rows["trained"], rows["overlong"]) == (5, len(trained), 5 - len(trained))


def test_nothing_is_cut_unasked(path, processor, datamodule):
    with pytest.raises(DataError, match=rf"^{path}:3: \d+ tokens, more than data\.max_tokens={MOST}\.") as caught:
        prepared(datamodule(path, max_tokens=MOST), processor)
    assert "3 of 5 rows cannot be used" in str(caught.value)
    assert "data.overlong=shrink_media" in str(caught.value)
