"""Looking at a model while it trains: exact figures, the best kept, an early end, and a training that notices nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from tests.training import forked
from tests.training.conftest import lines, small, write_manifest
from tests.training.small_run import prepared
from vlmkit.data.holding_out import hold_out


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("manifest"), 24, text_only=frozenset({1, 6}))


@pytest.fixture(scope="module")
def unseen(tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("unseen"), 5, text_only=frozenset({2}))


@pytest.fixture(scope="module")
def validated(manifest, unseen, tmp_path_factory):
    """A run that is looked at every two steps, with held-out loss and a benchmark."""
    folder = tmp_path_factory.mktemp("validated")
    forked.run(*small(manifest, folder / "run", *looked_at(unseen)), output=folder / "out")
    return folder / "run", (folder / "out").read_text()


def looked_at(unseen: Path) -> list[str]:
    """Settings of that run."""
    return [
        f"data.validation={unseen}", "validate.every_n_steps=2", "validate.benchmarks=[shapes]", "validate.max_samples=3",
        "validate.max_new_tokens=4", "save.best=val/loss", "save.every_n_steps=1", "save.keep=1", "data.batch_size=4",
        "freeze=vision_frozen", "logger=[csv,tensorboard]",
    ]  # fmt: skip


def told(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines()]


def test_training_does_not_notice(validated, manifest, tmp_path):
    """Same weights bit for bit, same losses, as a run that nobody looks at."""
    settings = ["data.batch_size=4", "freeze=vision_frozen"]
    forked.run(*small(manifest, tmp_path / "run", *settings), output=tmp_path / "out")
    one, other = (load_file(place / "hf" / "model.safetensors") for place in (validated[0], tmp_path / "run"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert [line["loss"] for line in lines(validated[0])] == [line["loss"] for line in lines(tmp_path / "run")]


def loss_of_export(directory: Path, manifest: Path, cache: Path) -> float:
    """Mean loss over supervised tokens, by the stock model that was exported, one sample at a time."""
    from transformers import AutoModelForImageTextToText

    from vlmkit.processing.encode import encode_example

    stock = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    data = prepared(manifest, directory, cache)
    total, count = 0.0, 0
    for row in range(len(data.index)):
        sample = encode_example(data.index.conversation(row), data.processor, pixels="float32")
        ids, media = sample["input_ids"][None], {}
        if len(sample["grid_thw"]):
            single = sample["still_patches"]
            copies = single.reshape(len(single), 3, 1, -1).expand(-1, -1, 2, -1).reshape(len(single), -1)
            media = {"pixel_values": copies, "image_grid_thw": sample["grid_thw"]}
        with torch.no_grad():
            logits = stock(
                input_ids=ids, mm_token_type_ids=(ids == data.processor.image_token_id).long(), **media
            ).logits[0]
        total += cross_entropy(logits[:-1], sample["labels"][1:], reduction="sum").item()
        count += int((sample["labels"] != -100).sum())
    return total / count


def test_the_held_out_loss_is_the_mean_over_supervised_tokens(validated, unseen, cache):
    wanted = loss_of_export(validated[0] / "hf", unseen, cache)
    assert told(validated[0])[-1]["metrics"]["val/loss"] == pytest.approx(wanted, rel=1e-5)


def test_what_was_measured_is_written_and_logged(validated):
    run_dir, _ = validated
    found = told(run_dir)
    assert [line["step"] for line in found] == [2, 4, 6]
    assert all(line["metrics"].keys() == {"val/loss", "eval/shapes/exact_match"} for line in found)
    assert found[-1]["metrics"]["val/loss"] < found[0]["metrics"]["val/loss"]
    records = (run_dir / "validation" / "step-000004" / "shapes" / "records.jsonl").read_text().splitlines()
    assert len(records) == 3
    pictures = sorted(path.name for path in (run_dir / "validation" / "step-000004").glob("*.png"))
    assert pictures == [f"sample-{number}.png" for number in range(1, 5)]
    assert list((run_dir / "tensorboard").glob("events.*"))[0].stat().st_size > 10_000, "the pictures are in it"
    assert "val/loss" in (run_dir / "metrics.csv").read_text().splitlines()[0]


def test_the_best_checkpoint_stays_and_the_run_ends_early(manifest, unseen, tmp_path):
    """A rate that ruins the model: the first validation is the best one."""
    settings = [
        f"data.validation={unseen}", "validate.every_n_steps=1", "save.best=val/loss", "save.every_n_steps=1",
        "save.keep=1", "validate.stop_after=2", "optim.lr=0.3", "optim.warmup_ratio=0", "optim.schedule=constant",
    ]  # fmt: skip
    forked.run(*small(manifest, tmp_path / "run", *settings), output=tmp_path / "out")
    losses = [line["metrics"]["val/loss"] for line in told(tmp_path / "run")]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 2 < 12, "two validations without a better one"
    place = tmp_path / "run" / "checkpoints"
    names = sorted(path.name for path in place.iterdir())
    assert names == ["hf_best", f"step-{best:06d}.ckpt", f"step-{best + 2:06d}.ckpt"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())["best"]
    wanted = {"metric": "val/loss", "value": min(losses), "step": best}
    assert report == {**wanted, "stopped_early": True, "export": str(place / "hf_best")}
    kept = torch.load(place / names[1], weights_only=True)["state_dict"]
    exported = load_file(place / "hf_best" / "model.safetensors")
    assert len(exported) > 10
    assert [name for name, tensor in exported.items() if not torch.equal(tensor, kept[f"model.hf.{name}"])] == []
    said = json.loads((place / "hf_best" / "vlmkit.json").read_text())
    assert said["provenance"]["trained"]["best"] == wanted
    assert "best model" in (tmp_path / "out").read_text()


def test_the_best_model_has_the_loss_that_made_it_the_best(validated, unseen, cache):
    run_dir, _ = validated
    best = json.loads((run_dir / "report.json").read_text())["best"]
    assert loss_of_export(run_dir / "checkpoints" / "hf_best", unseen, cache) == pytest.approx(best["value"], rel=1e-5)


@pytest.mark.slow
def test_the_best_model_can_be_evaluated_and_gone_on_with(validated, manifest, unseen, tmp_path):
    """And a finished run that is started again writes it anew, as long as its checkpoint stands."""
    from tests.training.conftest import run

    run_dir = tmp_path / "run"
    shutil.copytree(validated[0], run_dir)
    best = run_dir / "checkpoints" / "hf_best"
    told = run("eval", f"ckpt={best}", "benchmarks=[shapes]", "max_samples_per_benchmark=3", "max_new_tokens=4")
    assert str(tmp_path) in told
    summary = json.loads((run_dir / "checkpoints" / "hf_best-eval" / "summary.json").read_text())
    assert summary["checkpoint"]["path"] == str(best)
    assert summary["benchmarks"]["shapes"]["n"] == 3
    run("train", f"init_from={best}", "data.limit=8", f"run_dir={tmp_path / 'next'}", "trainer.max_steps=1")
    wanted = json.loads((run_dir / "report.json").read_text())["best"]["step"]
    shutil.rmtree(best)
    again = [*small(manifest, run_dir, *looked_at(unseen)), "resume_from=auto"]
    forked.run(*again, output=tmp_path / "again")
    assert json.loads((best / "vlmkit.json").read_text())["provenance"]["trained"]["best"]["step"] == wanted
    (run_dir / "checkpoints" / f"step-{wanted:06d}.ckpt").rename(tmp_path / "aside.ckpt")
    (run_dir / "checkpoints" / "step-000099.ckpt").write_bytes((tmp_path / "aside.ckpt").read_bytes())
    assert "is gone, so checkpoints/hf_best is not written" in forked.run(*again, output=tmp_path / "gone")


def test_a_share_is_disjoint_from_training_and_depends_on_each_row_alone(manifest, tiny, cache):
    whole, fewer = (prepared(manifest, tiny.vision_language, cache, batch_size=size) for size in (2, 3))
    judged, held = hold_out(whole.judgement, 0.3)
    again, same = hold_out(fewer.judgement, 0.3)
    kept = set(judged.plan_rows().row.tolist())
    assert kept.isdisjoint(held.row.tolist())
    assert kept | set(held.row.tolist()) == set(range(24))
    assert 2 <= len(held) <= 14
    assert held.row.tolist() == same.row.tolist()
    assert judged.counts() == {"trained": len(kept), "held_out": len(held)}
    assert again.rows("held_out").tolist() == held.row.tolist()
    _, smaller = hold_out(whole.judgement, 0.1)
    assert set(smaller.row.tolist()) <= set(held.row.tolist()), "a smaller share is a part of a larger one"


def test_at_least_one_row_is_held_out_and_one_is_left(manifest, tiny, cache):
    data = prepared(manifest, tiny.vision_language, cache)
    assert len(hold_out(data.judgement, 1e-9)[1]) == 1
    with pytest.raises(ValueError, match="nothing is left to train on"):
        hold_out(data.judgement, 0.999999)


def test_a_share_is_counted_in_the_report(manifest, tmp_path):
    settings = ["data.validation=0.3", "trainer.max_epochs=1", "data.batch_size=4"]
    forked.run(*small(manifest, tmp_path / "run", *settings), output=tmp_path / "out")
    rows = json.loads((tmp_path / "run" / "report.json").read_text())["rows"]["sources"]["manifest"]
    held = rows["skipped_by_reason"]["held_out"]
    assert held >= 1
    assert rows["trained"] + held == 24 == rows["read"]
    assert sum(line["samples"] for line in lines(tmp_path / "run")) == rows["trained"]
    assert told(tmp_path / "run")[-1]["metrics"].keys() == {"val/loss"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("save.best=val/loss", "save.best=val/loss: not measured in this run. Measured: nothing."),
        ("validate.stop_after=2", "validate.stop_after: say which metric has to improve"),
        ("data.validation=1.5", "data.validation=1.5: a share must lie between 0 and 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(manifest, tmp_path, override, message):
    assert message in forked.run(*small(manifest, tmp_path / "run", override), output=tmp_path / "out", status=1)


def test_held_out_rows_with_unreadable_media_are_masked_named_and_bounded(manifest, tmp_path):
    unseen = write_manifest(tmp_path, 5)
    for number in (1, 3):  # headers that are sound, and pixels that are not
        image = tmp_path / f"{number}.png"
        image.write_bytes(image.read_bytes()[:200])
    settings = ["data.on_bad_media=mask", "trainer.max_steps=2", "validate.every_n_steps=1"]
    settings += [f"data.validation={unseen}", "data.max_bad_media=2"]
    forked.run(*small(manifest, tmp_path / "run", *settings), output=tmp_path / "out")
    for line in told(tmp_path / "run"):
        assert [entry["where"] for entry in line["masked"]] == [f"{unseen}:2", f"{unseen}:4"]
        assert all(entry["reason"] == "unreadable_media" for entry in line["masked"])
    losses = (tmp_path / "run" / "validation" / "step-000002" / "held_out.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in losses] == [f"{unseen}:{row}" for row in (1, 3, 5)]
    output = (tmp_path / "out").read_text()
    assert output.count(f"{unseen}:2: held out, masked: image ") == 1, "once, though validated twice"
    forked.run(*small(manifest, tmp_path / "few", *settings, "data.max_bad_media=1"), output=tmp_path / "out", status=1)
    output = (tmp_path / "out").read_text()
    assert "The media of 2 held-out rows cannot be read, more than data.max_bad_media=1. The first: " in output
    assert f"{unseen}:2: image " in output
