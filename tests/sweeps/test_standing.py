"""The best run against the others: paired, corrected for all pairs, refused where it would mislead."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.evaluation.test_comparison import write
from vlmkit.errors import VlmkitError
from vlmkit.evaluation.comparison import clustered_stderr, holm, mcnemar, sign_flips, student_95
from vlmkit.sweeps.standing import contenders, contenders_of_sweep, notes, standings, text

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def held_out(run_dir, losses, *, step=4, tokens=TOKENS, prefix="rows.json"):
    """A run directory with held-out losses per sample, summed over their tokens."""
    place = run_dir / "validation" / f"step-{step:06d}"
    place.mkdir(parents=True)
    lines = [
        {"schema": "vlmkit.held_out/1", "id": f"{prefix}:{row}", "loss": loss, "tokens": count}
        for row, (loss, count) in enumerate(zip(losses, tokens, strict=True), start=1)
    ]
    (place / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mean = sum(losses) / sum(tokens)
    line = {"step": step, "metrics": {"val/loss": mean}, "stderr": {"val/loss": 0.1}}
    (run_dir / "validation.jsonl").write_text(json.dumps(line) + "\n")
    return run_dir


def evaluated(run_dir, scores, **settings):
    """A run directory with an evaluation in it, where vlmkit-eval puts one."""
    write(run_dir / "eval", {"gqa": scores}, **settings)
    return run_dir


def test_losses_are_paired_by_sample_and_weighted_by_tokens(tmp_path):
    rng = np.random.default_rng(0)
    tokens = np.array(TOKENS)
    base = rng.uniform(1, 2, 8)
    losses = {
        "a": base * tokens,
        "b": (base + 0.1 + rng.uniform(0, 0.01, 8)) * tokens,
        "c": (base + rng.normal(0, 0.5, 8)) * tokens,
    }
    runs = [held_out(tmp_path / name, one.tolist()) for name, one in losses.items()]
    metric, found = contenders(runs, None, names=list(losses))
    assert metric == "val/loss"
    told = standings(metric, found, seed=0)
    means = {name: one.sum() / tokens.sum() for name, one in losses.items()}
    best, *others = sorted(means, key=means.get)
    assert (told.best, told.best_score) == (best, pytest.approx(means[best]))
    assert [row.name for row in told.rows] == others
    for row in told.rows:
        change = (losses[row.name] - losses[best]) * 8 / tokens.sum()
        spread = student_95(7) * clustered_stderr(change, np.arange(8))
        assert row.difference == pytest.approx(means[row.name] - means[best])
        assert row.interval == pytest.approx((row.difference - spread, row.difference + spread))
        assert row.paired.p == pytest.approx(sign_flips(-change, seed=0))
        assert row.paired.worse == int((change > 0).sum())
    assert [row.paired.p_holm for row in told.rows] == holm([row.paired.p for row in told.rows], num_tests=3)
    assert told.num_pairs == 3


def test_scores_are_paired_by_case_and_the_best_is_the_highest(tmp_path):
    scores = {name: {str(n): float(n < right) for n in range(20)} for name, right in {"a": 6, "b": 18, "c": 17}.items()}
    runs = [evaluated(tmp_path / name, one) for name, one in scores.items()]
    told = standings(*contenders(runs, "eval/gqa"), seed=0)
    assert told.best == str(tmp_path / "b")
    assert [(row.score, row.difference) for row in told.rows] == [(85.0, -5.0), (30.0, -60.0)]
    assert told.rows[1].paired.p == mcnemar(0, 12)
    assert [row.paired.significant for row in told.rows] == [False, True]
    words = text(told)
    assert "clearly worse" in words
    assert "no clear difference" in words
    assert "allows for all 3 pairs of runs" in words


def test_the_correction_is_for_all_pairs_since_the_best_was_picked(tmp_path):
    """Nine cases won of nine: p 0.0039; among 4 runs 6 pairs are possible."""
    base = {str(n): 1.0 for n in range(20)}
    runs = [evaluated(tmp_path / "a", base)]
    runs += [
        evaluated(tmp_path / name, {**base, **{str(n): 0.0 for n in range(lost)}})
        for name, lost in (("b", 9), ("c", 9), ("d", 8))
    ]
    told = standings(*contenders(runs, "eval/gqa"), seed=0)
    p = [row.paired.p for row in told.rows]
    assert p == [2 / 2**8, 2 / 2**9, 2 / 2**9]
    assert [row.paired.p_holm for row in told.rows] == pytest.approx([4 * 2 / 2**8, 6 * 2 / 2**9, 6 * 2 / 2**9])
    assert [row.paired.p_holm for row in told.rows][1] < [row.paired.p_holm for row in told.rows][0] < 0.05


def test_holm_for_some_of_the_tests_is_an_upper_bound():
    values = [0.01, 0.02, 0.03, 0.5]
    assert holm(values) == pytest.approx([0.04, 0.06, 0.06, 0.5])
    some = holm(values[:2], num_tests=4)
    assert some == pytest.approx([0.04, 0.06])
    assert holm(values[2:], num_tests=4) >= holm(values)[2:]


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"protocol": "vlmevalkit"}, "protocol is 'lmms-eval' in"), ({"metric": "other"}, "metric is ")],
)
def test_another_protocol_or_metric_is_refused(tmp_path, changed, message):
    scores = {str(n): 1.0 for n in range(5)}
    runs = [evaluated(tmp_path / "a", scores), evaluated(tmp_path / "b", scores, gqa=changed)]
    with pytest.raises(VlmkitError, match="These evaluations cannot be compared") as error:
        standings(*contenders(runs, "eval/gqa"), seed=0)
    assert message in str(error.value)


def test_other_held_out_samples_are_refused(tmp_path):
    runs = [held_out(tmp_path / "a", [1.0] * 8), held_out(tmp_path / "b", [1.0] * 8, prefix="other.json")]
    with pytest.raises(VlmkitError, match="not measured on the same held-out samples"):
        contenders(runs, "val/loss")
    runs[1] = held_out(tmp_path / "c", [1.0] * 8, tokens=[2, *TOKENS[1:]])
    with pytest.raises(VlmkitError, match="or these have other tokens"):
        contenders(runs, "val/loss")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("train/loss", "train/loss: it was not measured on the same cases, and gives no pairs"),
        ("eval/gqa", "gqa was not measured there. Evaluate every run first: vlmkit-eval ckpt="),
    ],
)
def test_what_was_not_measured_on_the_same_cases_is_refused(tmp_path, metric, message):
    runs = [held_out(tmp_path / name, [1.0] * 8) for name in "ab"]
    with pytest.raises(VlmkitError) as error:
        contenders(runs, metric)
    assert message in str(error.value)


def test_one_run_or_none_is_nothing_to_compare(tmp_path):
    with pytest.raises(VlmkitError, match="1 finished runs. Name two or more"):
        contenders([tmp_path], None)
    with pytest.raises(VlmkitError, match="nowhere: no such directory"):
        contenders([tmp_path, tmp_path / "nowhere"], None)


def test_evaluation_directories_may_be_named_themselves(tmp_path):
    scores = {str(n): float(n < 3) for n in range(5)}
    for name in "ab":
        write(tmp_path / name, {"gqa": scores, "mmmu": scores} if name == "a" else {"gqa": scores})
    metric, found = contenders([tmp_path / "a", tmp_path / "b"], None)
    assert metric == "eval/gqa"
    assert standings(metric, found, seed=0).rows[0].difference == 0.0
    write(tmp_path / "c", {"gqa": scores, "mmmu": scores})
    with pytest.raises(VlmkitError, match=r"Choose one: metric=eval/gqa, metric=eval/mmmu\."):
        contenders([tmp_path / "a", tmp_path / "c"], None)


def test_a_sweep_s_finished_runs_by_what_it_was_ranked_by(tmp_path):
    for name in "abc":
        held_out(tmp_path / name, [1.0 + (name == "b")] * 8)
    runs = [{"name": name, "state": "failed" if name == "c" else "finished"} for name in "abc"]
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": "vlmkit.sweep/1", "metric": "val/loss", "runs": runs}))
    metric, found = contenders_of_sweep(tmp_path, None)
    assert (metric, [one.name for one in found]) == ("val/loss", ["a", "b"])
    told = standings(metric, found, seed=0)
    assert (told.best, told.rows[0].difference) == ("a", pytest.approx(8 / sum(TOKENS)))
    assert "above 0 is worse" in notes(told)[0]
