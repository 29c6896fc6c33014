"""What a run came to, from its files, finished or under way."""

from __future__ import annotations

import json

import pytest

from vlmkit.sweeps.result import choose_metric, lower_is_better, model_of, read_result, validations_of, value_of


def write(folder, losses=(), validations=(), report=None):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "loss": loss, "tokens_per_second": 100.0} for step, loss in enumerate(losses, start=1)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if validations:
        (folder / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in validations))
    if report is not None:
        (folder / "report.json").write_text(json.dumps(report))
    return folder


def validation(step, stderr=None, **metrics):
    return {
        "step": step,
        "metrics": {name.replace("__", "/"): value for name, value in metrics.items()},
        "stderr": stderr or {},
    }


def test_the_training_loss_is_the_mean_of_the_last_tenth(tmp_path):
    result = read_result(write(tmp_path, [5.0] * 90 + [1.0, 2.0] * 5, report={"seconds": 7.5}))
    score = result.scores["train/loss"]
    assert (score.value, score.step) == (1.5, 100)
    assert score.stderr == pytest.approx(0.5270463 / 10**0.5)
    assert score.interval == pytest.approx((1.5 - 1.959964 * score.stderr, 1.5 + 1.959964 * score.stderr))
    assert (result.steps, result.seconds, result.tokens_per_second) == (100, 7.5, 100.0)


def test_few_lines_have_a_loss_and_no_interval(tmp_path):
    score = read_result(write(tmp_path, [4.0, 3.0, 2.0])).scores["train/loss"]
    assert (score.value, score.stderr, score.interval) == (2.0, None, None)
    assert read_result(tmp_path / "nowhere").scores == {}
    assert read_result(tmp_path / "nowhere").steps == 0


def test_a_step_whose_loss_was_skipped_does_not_count(tmp_path):
    assert read_result(write(tmp_path, [2.0, None])).scores["train/loss"].value == 2.0


def test_scores_are_of_the_last_validation_or_of_the_best_that_was_kept(tmp_path):
    validations = [
        validation(10, {"val/loss": 0.1}, val__loss=1.0, eval__shapes__exact_match=30.0),
        validation(20, {"val/loss": 0.2}, val__loss=1.5, eval__shapes__exact_match=40.0),
    ]
    folder = write(tmp_path, [2.0], validations, report={"best": {"metric": None, "value": None, "step": None}})
    summary = {"benchmarks": {"shapes": {"score": 40.0, "stderr": 4.5}}}
    (folder / "validation" / "step-000020").mkdir(parents=True)
    (folder / "validation" / "step-000020" / "summary.json").write_text(json.dumps(summary))
    scores = read_result(folder).scores
    assert (scores["val/loss"].value, scores["val/loss"].stderr, scores["val/loss"].step) == (1.5, 0.2, 20)
    assert (scores["eval/shapes/exact_match"].value, scores["eval/shapes/exact_match"].stderr) == (40.0, 4.5)
    write(tmp_path, [2.0], validations, report={"best": {"metric": "val/loss", "value": 1.0, "step": 10}})
    scores = read_result(folder).scores
    assert (scores["val/loss"].value, scores["val/loss"].stderr, scores["val/loss"].step) == (1.0, 0.1, 10)
    assert scores["eval/shapes/exact_match"].step == 20
    assert model_of(folder, "val/loss") == folder
    (folder / "checkpoints" / "hf_best").mkdir(parents=True)
    assert model_of(folder, "val/loss") == folder / "checkpoints" / "hf_best"
    assert model_of(folder, "eval/shapes/exact_match") == folder


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    folder = write(tmp_path, [2.0], [validation(10, val__loss=1.0)])
    with (folder / "validation.jsonl").open("a") as file:
        file.write('{"step": 20, "met')
    assert validations_of(folder) == [(10, {"val/loss": 1.0})]
    assert read_result(folder).scores["val/loss"].step == 10


def test_curves_are_thinned_to_means(tmp_path):
    points = read_result(write(tmp_path, [float(n % 2) for n in range(600)])).curves["train/loss"]
    assert len(points) == 150
    assert points[0] == (4, 0.5)
    assert points[-1] == (600, 0.5)


def test_what_runs_are_ranked_by():
    assert choose_metric(["val/loss", "eval/gqa/exact_match", "eval/mme/total"]) == "eval/gqa/exact_match"
    assert choose_metric(["train/loss", "val/loss"]) == "val/loss"
    assert choose_metric([]) == "train/loss"
    assert lower_is_better("val/loss")
    assert not lower_is_better("eval/shapes/exact_match")


def test_the_value_to_optimise(tmp_path):
    folder = write(tmp_path, [2.0], [validation(10, val__loss=1.0, eval__shapes__exact_match=30.0)])
    assert value_of(folder, None) == 30.0
    assert value_of(folder, "val/loss") == 1.0
    assert value_of(folder, "eval/gqa/exact_match") is None
