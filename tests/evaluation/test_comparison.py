"""Differences and their p, against values computed by hand or in another way; what cannot be compared is refused."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from vlmkit.errors import VlmkitError
from vlmkit.evaluation.comparison import (
    clustered_stderr,
    compare,
    holm,
    mcnemar,
    read_evaluation,
    sign_flips,
    student_95,
    table,
)


def write(directory, benchmarks, **changes):
    """An evaluation directory: scores by case id, or whole records."""
    figures = {}
    for name, scores in benchmarks.items():
        rows = [one if isinstance(one, dict) else {"id": case, "score": one} for case, one in scores.items()]
        whole = {"prompt": "q", "media": [], "expected": "x", "answer": "y", "outcome": "wrong"}
        (directory / name).mkdir(parents=True)
        (directory / name / "records.jsonl").write_text("".join(json.dumps(whole | row) + "\n" for row in rows))
        figures[name] = {"protocol": "lmms-eval", "metric": "exact_match", "unit": "percent"} | changes.get(name, {})
    summary = {"schema": "vlmkit.summary/1", "checkpoint": {"path": str(directory)}, "benchmarks": figures}
    (directory / "summary.json").write_text(json.dumps(summary))
    return read_evaluation(directory)


def test_mcnemar_is_the_binomial_test_of_a_fair_coin():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(8, 1) == mcnemar(1, 8)
    assert mcnemar(10, 20) == pytest.approx(0.0987, abs=5e-5)  # R: binom.test(10, 30)
    assert 0 < mcnemar(4000, 6000) < 1e-80


def test_sign_flips_of_few_clusters_are_all_tried():
    sums = np.array([3.0, 1.0, -1.0, 2.0])
    totals = [
        abs(sum(sign * one for sign, one in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    assert sign_flips(sums, seed=0) == sum(total >= 5 for total in totals) / 16
    assert sign_flips(np.zeros(3), seed=0) == 1


def test_sign_flips_of_single_right_and_wrong_cases_are_mcnemar_s():
    sums = np.array([1.0] * 30 + [-1.0] * 14 + [0.0] * 50)
    assert sign_flips(sums, seed=0) == pytest.approx(mcnemar(30, 14), abs=0.005)
    assert sign_flips(sums, seed=0) == sign_flips(sums, seed=0)


def test_the_standard_error_of_single_cases_is_the_plain_one_and_of_copies_counts_them_once():
    values = np.random.default_rng(0).normal(size=40)
    assert clustered_stderr(values, np.arange(40)) == pytest.approx(values.std(ddof=1) / 40**0.5)
    twice = clustered_stderr(np.repeat(values, 2), np.repeat(np.arange(40), 2))
    assert twice == pytest.approx(clustered_stderr(values, np.arange(40)))
    assert clustered_stderr(values, np.zeros(40, dtype=np.int64)) is None


@pytest.mark.parametrize(
    ("freedom", "point"), [(1, 12.706), (5, 2.571), (6, 2.447), (10, 2.228), (30, 2.042), (1000, 1.962)]
)
def test_points_of_student_s_t_are_those_of_the_tables(freedom, point):
    assert student_95(freedom) == pytest.approx(point, abs=2e-3)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_comparison_by_hand(tmp_path):
    first = write(tmp_path / "a", {"b": {str(n): float(n < 10) for n in range(20)} | {"x": 1.0}})
    second = write(tmp_path / "b", {"b": {str(n): float(n < 18) for n in range(20)}})
    (one,) = compare(first, second, seed=0)
    assert (one.n, one.only_first, one.only_second, one.better, one.worse) == (20, 1, 0, 8, 0)
    assert (one.first, one.second, one.difference) == (50, 90, 40)
    assert one.stderr == pytest.approx(100 * np.array([1.0] * 8 + [0.0] * 12).std(ddof=1) / 20**0.5)
    assert (one.test, one.p) == ("exact McNemar", 2 / 2**8)
    assert one.significant
    assert "significant" in table([one])
    assert "1 cases of the first alone" in table([one])


def test_questions_on_one_image_are_one_cluster_and_partial_scores_are_flipped(tmp_path):
    def rows(gain):
        return {str(n): {"id": str(n), "score": gain * (n % 4) / 4, "media": [f"{n // 2}.png"]} for n in range(40)}

    (one,) = compare(write(tmp_path / "a", {"b": rows(0.5)}), write(tmp_path / "b", {"b": rows(1)}), seed=0)
    assert (one.num_clusters, one.n) == (20, 40)
    assert one.test == "sign flips of 20 clusters"
    assert one.p < 0.001


def test_equal_evaluations_do_not_differ(tmp_path):
    scores = {"b": {str(n): float(n % 3 == 0) for n in range(30)}}
    (one,) = compare(write(tmp_path / "a", scores), write(tmp_path / "b", scores), seed=0)
    assert (one.difference, one.p, one.significant, one.interval) == (0, 1, False, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "vlmevalkit"}, "protocol is 'lmms-eval' in .*a and 'vlmevalkit' in .*b. Score one again"),
        ({"metric": "anls"}, "metric is 'exact_match'"),
        ({"judge": "gpt"}, "judge is None in .* and 'gpt'"),
    ],
)
def test_other_rules_are_refused(tmp_path, changes, message):
    first = write(tmp_path / "a", {"gqa": {"1": 1.0}})
    second = write(tmp_path / "b", {"gqa": {"1": 1.0}}, gqa=changes)
    with pytest.raises(VlmkitError, match=message):
        compare(first, second, seed=0)


def test_other_data_are_refused(tmp_path):
    first = write(tmp_path / "a", {"gqa": {"1": {"id": "1", "score": 1.0, "expected": "cat"}}})
    with pytest.raises(VlmkitError, match="gqa: 1 cases expect another answer .1 the first.: the data differ"):
        compare(first, write(tmp_path / "b", {"gqa": {"1": 1.0}}), seed=0)
    with pytest.raises(VlmkitError, match="gqa: no case is in both"):
        compare(first, write(tmp_path / "c", {"gqa": {"2": 1.0}}), seed=0)
    with pytest.raises(VlmkitError, match="Nothing to compare"):
        compare(first, write(tmp_path / "d", {"pope": {"1": 1.0}}), seed=0)


def test_what_is_no_evaluation_is_said(tmp_path):
    with pytest.raises(VlmkitError, match="no summary.json, so it is no evaluation directory"):
        read_evaluation(tmp_path)
    write(tmp_path / "run" / "eval", {"b": {"1": 1.0}})
    assert read_evaluation(tmp_path / "run").directory == tmp_path / "run" / "eval", "a run's directory names its own"
    write(tmp_path / "a", {"b": {"1": 1.0}})
    (tmp_path / "a" / "b" / "records.jsonl").write_text('{"id": "1", "score"')
    with pytest.raises(VlmkitError, match="records.jsonl:1: no record"):
        read_evaluation(tmp_path / "a")
    (tmp_path / "a" / "summary.json").write_text('{"schema": "vlmkit.summary/9"}')
    with pytest.raises(VlmkitError, match="schema 'vlmkit.summary/9', wanted 'vlmkit.summary/1'"):
        read_evaluation(tmp_path / "a")
