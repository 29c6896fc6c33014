"""From manifests to batches: bad rows told or counted, every row accounted for, the loader at its place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from PIL import Image

from vlmkit.data import datamodule as module
from vlmkit.data.datamodule import PackedDataModule
from vlmkit.data.dataset import PackDataset
from vlmkit.errors import ConfigError, DataError
from vlmkit.processing.processor import Processor

MakeData = Callable[..., PackedDataModule]
SHARED = Path(os.environ.get("VLMKIT_SHARED", Path(__file__).parents[3] / "shared"))


def prepare(data: PackedDataModule, processor: Processor, **changed: Any) -> PackedDataModule:
    end: dict[str, Any] = {"num_epochs": 1, "max_packs": None, "require_media": False}
    data.prepare(processor=processor, **(end | changed))
    return data


def refusal(data: PackedDataModule, processor: Processor, kind: type[Exception] = DataError, **changed: Any) -> str:
    with pytest.raises(kind) as caught:
        prepare(data, processor, **changed)
    return str(caught.value)


def counts(data: PackedDataModule, name: str = "rows") -> dict[str, int]:
    """Of one source, once it has been seen that they add up."""
    told = data.accounting()["sources"][name]
    assert told["read"] == told["trained"] + told["skipped"] + told["masked"] + told["overlong"]
    assert told["skipped"] == sum(told["skipped_by_reason"].values())
    return {key: value for key, value in told.items() if isinstance(value, int)}


def planned_rows(data: PackedDataModule) -> list[int]:
    return sorted(row for pack in data.plan for row in pack.rows)


def missing(corpus: Any, name: str = "none.png") -> dict[str, Any]:
    return corpus.rows["image"] | {"image": name}


def test_all_rows_are_trained(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    data = prepare(datamodule(corpus.write(list(corpus.rows.values()))), processor)
    assert data.name == "rows"
    assert counts(data) == {"read": 7, "trained": 7, "skipped": 0, "masked": 0, "overlong": 0}
    assert data.accounting()["first_of_each"] == {}
    assert planned_rows(data) == list(range(7))
    assert len(data.plan) == 4


def test_bad_rows_are_an_error_with_place_remedy_and_count(
    corpus: Any, processor: Processor, datamodule: MakeData
) -> None:
    path = corpus.write([corpus.rows["text"], missing(corpus), corpus.rows["image"], b"{"])
    lines = refusal(datamodule(path), processor).splitlines()
    assert lines[0].startswith(f"{path}:2: image '{corpus.root}/none.png' not found. Check data.root")
    assert lines[1].startswith(f"{path}:4: the row is no valid JSON")
    assert lines[2] == "2 of 4 rows cannot be used. data.on_bad_row=skip trains on the others and counts these."
    assert len(lines) == 3


def test_only_the_first_of_many_bad_rows_are_told(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    path = corpus.write([corpus.rows["text"]] + [missing(corpus, f"{number}.png") for number in range(8)])
    lines = refusal(datamodule(path), processor).splitlines()
    assert [line.split(": ")[0] for line in lines[:5]] == [f"{path}:{row}" for row in range(2, 7)]
    assert lines[5:6] == ["... and 3 more"]
    assert lines[6].startswith("8 of 9 rows cannot be used.")


@pytest.mark.parametrize(
    ("most", "told"),
    [
        (0.25, None),
        (2, None),
        (None, None),
        (0.24, "2 bad rows are more than data.max_bad_rows=0.24 allows (1 of 8)."),
        (1, "2 bad rows are more than data.max_bad_rows=1 allows (1 of 8)."),
        (0, "2 bad rows are more than data.max_bad_rows=0 allows (0 of 8)."),
        (0.0, "2 bad rows are more than data.max_bad_rows=0.0 allows (0 of 8)."),
    ],
)
def test_more_bad_rows_than_may_be_skipped_stop_the_run(
    most: float | None, told: str | None, corpus: Any, processor: Processor, datamodule: MakeData
) -> None:
    path = corpus.write([missing(corpus), *[corpus.rows["text"]] * 6, b"{"])
    data = datamodule(path, on_bad_row="skip", max_bad_rows=most)
    if told is None:
        assert counts(prepare(data, processor))["trained"] == 6
        return
    lines = refusal(data, processor).splitlines()
    assert lines[0].startswith(f"{path}:1: image")
    assert lines[1].startswith(f"{path}:8: the row is no valid JSON")
    assert lines[2].startswith(
        f"2 of 8 rows cannot be used. {told} Correct them (vlmkit-check check.bad_rows=bad.jsonl"
    )


@pytest.mark.parametrize("most", [-1, -0.1, 1.5, True, "many"])
def test_a_number_of_bad_rows_that_is_none_is_refused(most: object, corpus: Any, datamodule: MakeData) -> None:
    with pytest.raises(ConfigError, match=rf"data\.max_bad_rows={most}: "):
        datamodule(corpus.write([corpus.rows["text"]]), max_bad_rows=most)


def test_bad_rows_are_skipped_and_counted(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    rows = corpus.rows
    path = corpus.write([missing(corpus, "a.png"), rows["text"], b"{", missing(corpus, "b.png"), rows["turns"]])
    data = prepare(datamodule(path, on_bad_row="skip"), processor)
    assert counts(data) == {"read": 5, "trained": 2, "skipped": 3, "masked": 0, "overlong": 0}
    told = data.accounting()
    assert told["sources"]["rows"]["skipped_by_reason"] == {"missing_media": 2, "bad_json": 1}
    first = told["first_of_each"]
    assert {reason: first[reason]["where"] for reason in first} == {
        "missing_media": f"{path}:1",
        "bad_json": f"{path}:3",
    }
    assert "a.png" in first["missing_media"]["finding"]
    assert planned_rows(data) == [1, 4]


def test_an_image_that_is_none_is_a_bad_row(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    (corpus.root / "broken.png").write_bytes(b"no image")
    broken = missing(corpus, "broken.png")
    path = corpus.write([corpus.rows["text"], broken])
    assert f"{path}:2: image" in refusal(datamodule(path), processor)
    data = prepare(datamodule(path, on_bad_row="skip"), processor)
    assert data.accounting()["sources"]["rows"]["skipped_by_reason"] == {"unreadable_media": 1}


def test_overlong_rows(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    path = corpus.write(list(corpus.rows.values()))
    whole = prepare(datamodule(path), processor)
    lengths = whole.index.num_tokens.tolist()
    most = sorted(lengths)[-3]
    long = [row for row, length in enumerate(lengths) if length > most]
    message = refusal(datamodule(path, max_tokens=most), processor)
    assert f"{path}:{long[0] + 1}: {lengths[long[0]]} tokens, more than data.max_tokens={most}." in message
    assert f"{len(long)} of 7 rows cannot be used. Raise data.max_tokens" in message
    assert "data.overlong=drop" in message
    data = prepare(datamodule(path, max_tokens=most, overlong="drop"), processor)
    assert counts(data) == {"read": 7, "trained": 7 - len(long), "skipped": 0, "masked": 0, "overlong": len(long)}
    assert data.accounting()["first_of_each"]["overlong"]["where"] == f"{path}:{long[0] + 1}"
    assert not set(planned_rows(data)) & set(long)
    assert counts(prepare(datamodule(path, max_tokens=max(lengths)), processor))["trained"] == 7


def test_text_only_rows_where_only_media_train(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    rows = corpus.rows
    path = corpus.write([rows["image"], rows["text"], rows["video"], rows["text"], missing(corpus)])
    data = prepare(datamodule(path, on_bad_row="skip"), processor, require_media=True)
    assert counts(data) == {"read": 5, "trained": 2, "skipped": 3, "masked": 0, "overlong": 0}
    assert data.accounting()["sources"]["rows"]["skipped_by_reason"] == {"text_only": 2, "missing_media": 1}
    assert data.accounting()["first_of_each"]["text_only"]["where"] == f"{path}:2"
    assert planned_rows(data) == [0, 2]
    clean = prepare(
        datamodule(corpus.write([rows["image"], rows["text"]], "clean.json")), processor, require_media=True
    )
    assert counts(clean, "clean")["skipped"] == 1  # left out on purpose: no error
    assert counts(prepare(datamodule(path, on_bad_row="skip"), processor))["trained"] == 4


def test_no_rows_left(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    path = corpus.write([corpus.rows["text"], missing(corpus)])
    message = refusal(datamodule(path, on_bad_row="skip"), processor, require_media=True)
    assert message.startswith("data: none of the 2 rows can be trained on (")
    assert "1 text_only" in message
    assert "1 missing_media" in message
    empty = corpus.write([], "empty.json")
    assert refusal(datamodule(empty), processor).startswith("data: none of the 0 rows can be trained on")


def test_accounting_by_source(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    rows = corpus.rows
    first = corpus.write([rows["text"], rows["image"], missing(corpus)], "first.jsonl")
    second = corpus.write([rows["turns"], rows["three_images"]], "second.json")
    data = prepare(
        datamodule(
            first, {"path": second, "weight": 2, "name": "b"}, on_bad_row="skip", max_tokens=60, overlong="drop"
        ),
        processor,
    )
    assert data.name == "first+b"
    assert counts(data, "first") == {"read": 3, "trained": 2, "skipped": 1, "masked": 0, "overlong": 0}
    trained = counts(data, "b")["trained"]
    assert counts(data, "b")["read"] == 2
    assert len(planned_rows(data)) == 2 + 2 * trained
    limited = prepare(datamodule(first, second, limit=2), processor)
    assert (counts(limited, "first")["read"], counts(limited, "second")["read"]) == (2, 0)


def test_rows_that_no_pack_can_hold(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    path = corpus.write([corpus.rows["text"], corpus.rows["three_images"], corpus.rows["text"]])
    message = refusal(datamodule(path, tokens_per_batch=500, patches_per_batch=20), processor, ConfigError)
    assert message.startswith(f"{path}:2: ")
    assert "data.tokens_per_batch=500, data.patches_per_batch=20). 1 of 3 rows do not fit." in message
    data = prepare(datamodule(path, tokens_per_batch=500), processor)
    assert len(data.plan) == 1


def test_weights_too_small_for_the_epochs(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    path = corpus.write([corpus.rows["text"]])
    message = refusal(datamodule({"path": path, "weight": 0.25}), processor, ConfigError)
    assert message.startswith("data: the weights are too small")
    assert "data.tokens_per_batch" not in message


@pytest.mark.parametrize("key", ["overlong", "on_bad_row", "order", "pixels"])
def test_unknown_choices(key: str, corpus: Any, datamodule: MakeData) -> None:
    path = corpus.write([corpus.rows["text"]])
    with pytest.raises(ValueError, match=rf"data\.{key} must be one of .*, got 'maybe'"):
        datamodule(path, **{key: "maybe"})


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("limit", "abc", "a whole number of at least 1 or null"),
        ("limit", "", "a whole number of at least 1 or null"),
        ("limit", 0, "a whole number of at least 1 or null"),
        ("limit", True, "a whole number of at least 1 or null"),
        ("image_max_pixels", "1e6", "a whole number of at least 1 or null"),
        ("video_fps", "two", "a number of at least 0 or null"),
        ("media_timeout_seconds", "soon", "a number of at least 0 or null"),
        ("max_tokens", 2.5, "a whole number of at least 1 or null"),
        ("batch_size", "all", "a whole number of at least 1 or null"),
        ("tokens_per_batch", -1, "a whole number of at least 1 or null"),
        ("num_workers", "many", "a whole number of at least 0 or null"),
        ("num_workers", -1, "a whole number of at least 0 or null"),
        ("seed", -3, "a whole number of at least 0"),
    ],
)
def test_numbers_are_told_by_their_key(key: str, value: Any, wanted: str, corpus: Any, datamodule: MakeData) -> None:
    path = corpus.write([corpus.rows["text"]])
    with pytest.raises(ConfigError) as caught:
        datamodule(path, **{key: value})
    assert str(caught.value) == f"data.{key}={value}: wanted {wanted}."


def test_no_sources(datamodule: MakeData) -> None:
    with pytest.raises(ValueError, match=r"data\.sources is empty"):
        datamodule()


def trainer(accumulate: int) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_the_loader_starts_where_the_run_stands(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    path = corpus.write(list(corpus.rows.values()))
    data = prepare(datamodule(path, batch_size=1), processor, num_epochs=2)
    data.trainer = trainer(accumulate=2)
    assert data.num_steps(1, 2) == 7
    whole = list(data.train_dataloader())
    assert len(whole) == len(data.train_dataloader()) == 14
    data.start_pack, data.start_step = data.steps(1, 2).num_consumed(3), 3
    assert data.num_steps(1, 2) == 7
    left = list(data.train_dataloader())
    assert len(data.train_dataloader()) == 14
    assert [batch["rows"] for batch in left] == [batch["rows"] for batch in whole[6:]]
    for step in range(7):
        both = whole[2 * step : 2 * step + 2]
        assert {batch["step_supervised_tokens"] for batch in both} == {sum(len(batch["targets"]) for batch in both)}
    assert data.train_dataloader().state_dict() == {}


def test_a_worker_loads_the_same(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    path = corpus.write(list(corpus.rows.values()))
    batches = {}
    for num_workers in (0, 1):
        data = prepare(datamodule(path, num_workers=num_workers), processor)
        data.trainer = trainer(accumulate=1)
        loader = data.train_dataloader()
        batches[num_workers] = list(loader)
        del loader
    for here, there in zip(batches[0], batches[1], strict=True):
        assert here["rows"] == there["rows"]
        assert here["input_ids"].equal(there["input_ids"])
        assert here["still_patches"].equal(there["still_patches"])


def test_a_medium_that_changed_after_the_count(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    path = corpus.write([corpus.rows["image"]])
    data = prepare(datamodule(path), processor)
    dataset = PackDataset(index=data.index, processor=processor, pixels="uint8")
    slot = data.steps(1, 1).slots(0)[0]
    counted = int(data.index.num_tokens[0])
    assert dataset[slot]["seqlens"] == [counted]
    corpus.draw("wide.png", 320, 320)
    with pytest.raises(DataError, match=rf"^{path}:1: has \d+ tokens now and had {counted} when it was counted"):
        dataset[slot]


def test_an_idle_rank_gets_a_pack_of_nothing(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    data = prepare(datamodule(corpus.write([corpus.rows["image"]] * 3), batch_size=1), processor)
    slot = data.steps(2, 1).slots(1)[-1]
    batch = PackDataset(index=data.index, processor=processor, pixels="uint8")[slot]
    assert (batch["pack"], batch["rows"], len(batch["targets"]), batch["dummy_visual"]) == (-1, [], 0, True)
    assert batch["step_supervised_tokens"] == data.index.num_supervised_tokens[0]


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_an_idle_rank_and_one_with_text_have_patches_of_the_same_kind_as_the_others(
    pixels: Any, kind: str, corpus: Any, processor: Processor, datamodule: MakeData
) -> None:
    data = prepare(datamodule(corpus.write([corpus.rows[kind]] * 3), batch_size=1, pixels=pixels), processor)
    dataset = PackDataset(index=data.index, processor=processor, pixels=pixels)
    for rank in (0, 1):
        batch = dataset[data.steps(2, 1).slots(rank)[-1]]
        assert (batch["pack"] == -1) == (rank == 1)
        assert {str(batch[key].dtype) for key in ("still_patches", "video_patches")} == {f"torch.{pixels}"}  # type: ignore[literal-required]


def test_the_plan_is_the_same_once_the_data_has_moved(
    corpus: Any, processor: Processor, datamodule: MakeData, tmp_path: Path
) -> None:
    path = corpus.write(list(corpus.rows.values()))
    before = prepare(datamodule(path), processor)
    moved = tmp_path / "elsewhere" / "images"
    moved.parent.mkdir()
    corpus.root.rename(moved)
    manifest = moved.parent / "renamed.jsonl"
    (moved / "rows.jsonl").rename(manifest)
    after = prepare(datamodule(manifest, root=moved), processor)
    assert after.plan.key == before.plan.key
    assert list(after.plan) == list(before.plan)
    assert after.index.key != before.index.key  # counted anew: media are looked for where they are now
    Image.new("RGB", (640, 480)).save(moved / "wide.png")
    (tmp_path / "cache").rename(tmp_path / "old")  # an index is never asked what media look like today
    assert prepare(datamodule(manifest, root=moved), processor).plan.key != before.plan.key


def test_what_the_plan_key_still_follows(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    path = corpus.write(list(corpus.rows.values()))
    limited = {"path": path, "image_max_pixels": 10**6}  # nothing here is so large: the counts are the same
    keys = {
        prepare(datamodule(source, **changed), used).plan.key
        for source, changed, used in [
            (path, {}, processor),
            (path, {"seed": 6}, processor),
            (path, {"limit": 6}, processor),
            (limited, {}, processor),
            (path, {}, processor.with_limits(image_max_pixels=10**6)),
            (corpus.write([*corpus.rows.values(), corpus.rows["text"]], "more.jsonl"), {}, processor),
        ]
    }
    assert len(keys) == 6


def test_rows_that_the_run_did_not_reach_are_not_trained(
    corpus: Any, processor: Processor, datamodule: MakeData
) -> None:
    path = corpus.write([corpus.rows["text"]] * 6 + [missing(corpus)])
    weighed = {"path": path, "weight": 0.5}
    data = prepare(datamodule(weighed, batch_size=1, on_bad_row="skip"), processor)
    assert len(data.plan) == 3
    for done in range(4):
        told = data.accounting(done)
        rows = told["sources"]["rows"]
        assert told["samples"] == rows["trained"] == done
        reasons = {"not_drawn": 3, "missing_media": 1} | ({"not_reached": 3 - done} if done < 3 else {})
        assert rows["skipped_by_reason"] == reasons
        assert rows["read"] == 7 == rows["trained"] + rows["skipped"] + rows["masked"] + rows["overlong"]
    first = data.accounting(0)["first_of_each"]["not_reached"]
    assert first["where"] == data.index.origin(min(planned_rows(data))).__str__()
    assert first["finding"] == "it stands in the plan, and the run ended before it."


def test_a_row_seen_twice_is_counted_once(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    data = prepare(datamodule(corpus.write([corpus.rows["text"]] * 3), batch_size=2), processor, num_epochs=2)
    assert [(data.accounting(done)["samples"], counts(data)["trained"]) for done in (2, 4)] == [(3, 3), (6, 3)]


@pytest.fixture
def videos() -> Path:
    """A public manifest two of whose videos are not there."""
    path = SHARED / "data" / "qwen_demo" / "video.json"
    if not path.is_file():
        pytest.skip(f"no {path}; set VLMKIT_SHARED to a directory that has it")
    return path


def test_two_missing_videos_of_a_public_manifest(videos: Path, processor: Processor, datamodule: MakeData) -> None:
    settings: dict[str, Any] = {"root": videos.parent / "demo" / "videos", "video_max_frames": 8}
    message = refusal(datamodule(videos, **settings), processor)
    lines = message.splitlines()
    assert [line.split(": ")[0] for line in lines[:2]] == [f"{videos}:1", f"{videos}:2"]
    assert lines[2].startswith("2 of ")
    data = prepare(datamodule(videos, on_bad_row="skip", **settings), processor)
    told = counts(data, "video")
    assert (told["skipped"], told["trained"]) == (2, told["read"] - 2)
    assert data.accounting()["sources"]["video"]["skipped_by_reason"] == {"missing_media": 2}


def test_a_plan_is_dealt_out_once_until_it_changes(corpus: Any, processor: Processor, datamodule: MakeData) -> None:
    data = prepare(datamodule(corpus.write(list(corpus.rows.values()))), processor, num_epochs=2)
    dealt = data.steps(2, 1)
    assert data.steps(2, 1) is dealt
    assert data.steps(1, 2) is not dealt
    assert data.steps(1, 2).accumulate == 2
    data.start_pack = 1
    assert data.steps(1, 2).start_pack == 1
    data.plan_packs(num_epochs=1, max_packs=None)
    assert data.steps(1, 2).plan is data.plan


def test_workers_are_as_many_as_the_cpus_at_most_four(
    corpus: Any, datamodule: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus.write([corpus.rows["text"]])
    for cpus, wanted in ((1, 1), (3, 3), (96, 4)):
        monkeypatch.setattr(module, "usable_cpus", lambda cpus=cpus: cpus)
        assert datamodule(path, num_workers=None).num_workers == wanted
    assert datamodule(path, num_workers=7).num_workers == 7
