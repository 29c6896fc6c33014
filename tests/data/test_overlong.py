"""Over-long rows made to fit: media shrink or whole turns go, nothing is cut, every case is told."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.conversation import Conversation, ImagePart, Role, TextPart, Turn
from vlmkit.data import overlong
from vlmkit.data.datamodule import PackedDataModule
from vlmkit.data.dataset import PackDataset
from vlmkit.data.dealing import Slot
from vlmkit.errors import ConfigError
from vlmkit.processing.encode import measure_example
from vlmkit.processing.processor import Processor

MakeData = Callable[..., PackedDataModule]


def prepare(data: PackedDataModule, processor: Processor, **changed: Any) -> PackedDataModule:
    end: dict[str, Any] = {"num_epochs": 1, "max_packs": None, "require_media": False}
    data.prepare(processor=processor, **(end | changed))
    return data


def batch_of(data: PackedDataModule, processor: Processor, row: int) -> Any:
    dataset = PackDataset(index=data.index, processor=processor, pixels="uint8", fits=data.judgement.fits)
    return dataset[Slot(pack=0, rows=(row,), step=0, step_supervised_tokens=1, epoch=0)]


def exchanges(*answers: str) -> list[dict[str, str]]:
    return [
        {"from": who, "value": text}
        for number, answer in enumerate(answers)
        for who, text in (("human", f"question {number}?"), ("gpt", answer))
    ]


def test_turns_are_dropped_from_the_end(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    long = {"conversations": exchanges("one", "two " * 30, "three " * 40)}
    hopeless = {"conversations": exchanges("no end " * 60, "two")}
    path = corpus.write([corpus.rows["text"], long, hopeless, corpus.rows["image"]])
    data = prepare(datamodule(path, max_tokens=60, overlong="drop_turns"), processor)
    told = data.accounting()
    assert told["sources"]["rows"] | {"path": ""} == {
        "path": "",
        "read": 4,
        "trained": 3,
        "skipped": 0,
        "masked": 0,
        "overlong": 1,
        "skipped_by_reason": {},
    }
    assert sorted(data.plan.rows.tolist()) == [0, 1, 3]
    fitted, dropped = told["overlong"].pop("rows")
    assert told["overlong"] == {
        "policy": "drop_turns",
        "max_tokens": 60,
        "fitted": 1,
        "dropped": 1,
        "not_listed": 0,
    }
    kept = Conversation(data.index.conversation(1).turns[:2])
    tokens = measure_example(kept, processor).num_tokens
    assert fitted == {
        "where": f"{path}:2",
        "tokens": int(data.index.num_tokens[1]),
        "trained_tokens": tokens,
        "done": "turns after the first 2 dropped",
    }
    assert dropped == {"where": f"{path}:3", "tokens": int(data.index.num_tokens[2]), "done": "dropped"}
    assert told["first_of_each"]["overlong"]["where"] == f"{path}:3"
    batch = batch_of(data, processor, 1)
    assert batch["seqlens"] == [tokens]
    assert processor.hf.tokenizer.decode(batch["targets"]) == "one<|im_end|>"
    assert int(data.plan.num_supervised_tokens.sum()) == sum(
        len(batch_of(data, processor, row)["targets"]) for row in (0, 1, 3)
    )


def test_media_shrink_as_little_as_needed(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    factor = processor.geometry.factor
    corpus.draw("large.png", 12 * factor, 8 * factor)
    corpus.draw("little.png", 2 * factor, 2 * factor)
    row = {
        "images": ["large.png", "little.png"],
        "conversations": [{"from": "human", "value": "<image> and <image>?"}, {"from": "gpt", "value": "a b"}],
    }
    text = {"conversations": exchanges("word " * 100)}
    path = corpus.write([row, text])
    whole = prepare(datamodule(path), processor)
    most = int(whole.index.num_tokens[0]) - 30
    data = prepare(datamodule(path, max_tokens=most, overlong="shrink_media"), processor)
    batch = batch_of(data, processor, 0)
    (length,) = batch["seqlens"]
    large, little = batch["vision_seqlens"]
    assert most - 12 < length <= most  # the next larger grid of the image would not fit
    assert little == 16
    assert large < 12 * 8 * 4
    assert len(batch["visual_positions"]) == (large + little) // 4
    assert data.accounting()["overlong"]["rows"][0]["done"].startswith("media shrunk to at most ")
    assert data.accounting()["overlong"]["rows"][1]["done"] == "dropped"  # text does not shrink
    assert data.plan.num_tokens.tolist() == [length]
    assert data.plan.num_patches.tolist() == [large + little]


def test_videos_shrink_too(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    side = 8 * processor.geometry.factor
    frames = [corpus.draw(f"film/{number}.png", side, side) for number in range(4)]
    path = corpus.write([corpus.rows["video"] | {"video": frames}])
    whole = prepare(datamodule(path), processor)
    most = int(whole.index.num_tokens[0]) // 2
    data = prepare(datamodule(path, max_tokens=most, overlong="shrink_media"), processor)
    batch = batch_of(data, processor, 0)
    assert most // 2 < batch["seqlens"][0] <= most
    assert len(batch["vision_seqlens"]) == 2  # both frame pairs are there


def test_fits_are_kept_and_travel(
    corpus: Any, processor: Processor, datamodule: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus.write([corpus.rows["three_images"], corpus.rows["turns"], corpus.rows["text"]])
    first = prepare(datamodule(path, max_tokens=30, overlong="shrink_media"), processor)
    fits = first.judgement.fits
    assert len(fits) == 2
    travelled = pickle.loads(pickle.dumps(fits))
    assert all(np.array_equal(getattr(travelled, name), getattr(fits, name)) for name in ("row", "max_visual_tokens"))
    with monkeypatch.context() as patch:
        patch.setattr(overlong, "_shrink_media", lambda *_: pytest.fail("fitted again"))
        again = prepare(datamodule(path, max_tokens=30, overlong="shrink_media"), processor)
    assert again.plan.key == first.plan.key
    other = prepare(datamodule(path, max_tokens=28, overlong="shrink_media"), processor)
    assert other.judgement.fits.num_tokens.max() <= 28
    (file,) = (file for file in (first.cache_dir).glob("fits-*.bin") if file == fits._path)
    file.write_bytes(file.read_bytes()[:-40])
    assert prepare(datamodule(path, max_tokens=30, overlong="shrink_media"), processor).plan.key == first.plan.key


def test_what_is_left_must_show_something_where_only_media_train(
    corpus: Any, processor: Processor, datamodule: MakeData
) -> None:
    turns = [*exchanges("yes"), {"from": "human", "value": "<image> this?"}, {"from": "gpt", "value": "no " * 30}]
    path = corpus.write([{"image": "wide.png", "conversations": turns}, corpus.rows["image"]])
    data = datamodule(path, max_tokens=40, overlong="drop_turns")
    assert prepare(data, processor).plan.rows.tolist().count(0) == 1
    data = prepare(datamodule(path, max_tokens=40, overlong="drop_turns"), processor, require_media=True)
    assert data.plan.rows.tolist() == [1]
    assert data.accounting()["sources"]["rows"]["overlong"] == 1


@given(
    answers=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    images=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=3),
    max_tokens=st.integers(10, 160),
)
@settings(max_examples=40, deadline=None)
def test_a_fit_fits_and_more_would_not(
    answers: list[int], images: list[tuple[int, int]], max_tokens: int, processor: Processor, tmp_path_factory: Any
) -> None:
    root: Path = tmp_path_factory.getbasetemp() / "squares"
    root.mkdir(exist_ok=True)
    parts = []
    for high, wide in images:
        path = root / f"{high}x{wide}.png"
        if not path.exists():
            from PIL import Image

            Image.new("RGB", (wide * 32, high * 32)).save(path)
        parts.append(ImagePart(path))
    roles: tuple[Role, Role] = ("user", "assistant")
    turns = [
        Turn(role=role, parts=(*(parts if number == 0 and role == "user" else ()), TextPart("why " * length)))
        for number, length in enumerate(answers)
        for role in roles
    ]
    conversation = Conversation(tuple(turns))
    fit = overlong._drop_turns(conversation, processor, max_tokens)
    ends = range(2, len(turns) + 1, 2)
    lengths = {end: measure_example(Conversation(tuple(turns[:end])), processor).num_tokens for end in ends}
    fitting = [end for end in ends if lengths[end] <= max_tokens]
    assert (fit.num_turns if fit else None) == (fitting[-1] if fitting else None)
    shrunk = overlong._shrink_media(conversation, processor, max_tokens)
    if shrunk is not None:
        cap = shrunk.max_visual_tokens
        again = measure_example(conversation, overlong.capped(processor, cap))
        assert again == shrunk.measure
        assert again.num_tokens <= max_tokens
        more = measure_example(conversation, overlong.capped(processor, cap + 1)).num_tokens
        assert more > max_tokens or more == again.num_tokens
    elif images:
        least = -(-processor.image_min_pixels // processor.geometry.factor**2)
        assert measure_example(conversation, overlong.capped(processor, least)).num_tokens > max_tokens


def test_pixel_limits_of_a_source(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    factor = processor.geometry.factor
    corpus.draw("large.png", 6 * factor, 6 * factor)
    row = corpus.rows["image"] | {"image": "large.png"}
    plain, small = corpus.write([row], "plain.jsonl"), corpus.write([row], "small.jsonl")
    limited = {"path": str(small), "image_max_pixels": 4 * factor**2}
    data = prepare(datamodule(plain, limited), processor)
    assert data.index.num_patches.tolist() == [36 * 4, 4 * 4]
    assert [len(batch_of(data, processor, row)["still_patches"]) for row in (0, 1)] == [36 * 4, 4 * 4]
    other = prepare(datamodule(plain, limited | {"image_max_pixels": 9 * factor**2}), processor)
    assert other.index.num_patches.tolist() == [36 * 4, 9 * 4]
    with pytest.raises(ConfigError, match=r"data.sources\[0\].image_max_pixels: must be a positive number .* got 0"):
        datamodule(limited | {"image_max_pixels": 0})
    with pytest.raises(ConfigError, match="image_min_pixels .* must not exceed image_max_pixels"):
        prepare(datamodule(limited | {"image_max_pixels": 1}), processor)


def test_rows_that_the_plan_does_not_reach_are_told(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    path = corpus.write([corpus.rows["text"]] * 10)
    data = prepare(datamodule({"path": path, "weight": 0.3}), processor)
    told = data.accounting()["sources"]["rows"]
    assert (told["read"], told["trained"], told["skipped_by_reason"]) == (10, 3, {"not_drawn": 7})
    cut = prepare(datamodule(path), processor, num_epochs=None, max_packs=2)
    assert cut.accounting()["sources"]["rows"]["skipped_by_reason"] == {"not_drawn": 6}
    assert "the plan ends before it" in cut.accounting()["first_of_each"]["not_drawn"]["finding"]
