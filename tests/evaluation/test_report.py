"""Figures by hand, and the contracts of the files."""

from __future__ import annotations

import json

import pytest

from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.report import markdown, table, write_reports


class Told:
    name, metric, protocol, source = "told", "exact_match", "lmms-eval", "here"
    unit, judge, resampled = "percent", "no", True

    def __init__(self, **baselines):
        self._baselines = baselines

    def baselines(self):
        return self._baselines

    def figures(self, records):
        return {}


def record(score, outcome, category="", cluster="", **labels):
    told = {"score": score, "outcome": outcome, "category": category, "cluster": cluster, "labels": labels}
    return told | {"seconds": 0.5}


RECORDS = [
    record(1, "right", "a"),
    record(0, "wrong", "a"),
    record(0, "unparsed", "b"),
    record(0.5, "partial", "b"),
    record(0, "failed", "b"),
]


def test_figures_are_the_ones_computed_by_hand():
    figures = aggregate(Told(guesser=12.5), RECORDS)
    assert figures["score"] == 30.0
    assert figures["n"] == 5
    assert figures["stderr"] == pytest.approx(100 * (0.2 / 5) ** 0.5, abs=1e-3)  # s**2 = 0.8 / 4
    assert figures["parsed"] == 0.6
    assert figures["score_parsed"] == 50.0
    assert figures["seconds"] == 2.5
    assert figures["by_category"]["b"] == {
        "score": 16.6667,
        "n": 3,
        "stderr": 16.6667,
        "parsed": 0.3333,
        "score_parsed": 50.0,
    }
    assert figures["outcomes"] == {"failed": 1, "partial": 1, "right": 1, "unparsed": 1, "wrong": 1}
    assert figures["baselines"] == {"guesser": 12.5}


def test_one_case_has_no_standard_error_and_none_no_score():
    assert aggregate(Told(), RECORDS[:1])["stderr"] is None
    assert aggregate(Told(), [])["score"] == 0.0


def test_the_summary_keeps_its_contract(tmp_path):
    path = write_reports(
        tmp_path, checkpoint={"path": "x", "weights": "w"}, benchmarks={"told": aggregate(Told(guesser=1.0), RECORDS)}
    )
    summary = json.loads(path.read_text())
    assert summary["schema"] == "vlmkit.summary/1"
    assert summary["checkpoint"]["weights"] == "w"
    wanted = {"score", "unit", "metric", "n", "stderr", "parsed", "protocol", "seconds", "by_category"}
    assert wanted <= summary["benchmarks"]["told"].keys()
    assert summary["benchmarks"]["told"]["unit"] == "percent"
    assert json.loads((tmp_path / "told" / "metrics.json").read_text())["schema"] == "vlmkit.metrics/1"
    assert (tmp_path / "summary.md").read_text().startswith("# Evaluation")


def test_tables_say_error_parse_rate_and_baselines():
    figures = {"told": aggregate(Told(text_only_guesser=20.0), RECORDS)}
    shown = table(figures)
    assert "30.0 ± 20.0" in shown
    assert "60.0%" in shown
    assert "text only guesser 20.0" in shown
    assert "| a | 50.0 ± 50.0 | 2 | 100.0% |" in markdown(figures, {})


class Points(Told):
    """A headline figure that is no percentage."""

    metric, unit, figure_units = "total", "points", {"share": "percent"}

    def figures(self, records):
        return {"total": 1520.5, "share": 30.0, "a": 1.0, "b": 2.0, "c": 3.0}


def test_units_stand_beside_the_figures():
    figures = {"told": aggregate(Points(), RECORDS)}
    assert "1520.5 ± 0.0 points" in table(figures)
    assert "told: total 1520.50 points, share 30.00 %, a 1.00 points, b 2.00 points" in table(figures).splitlines()
    assert "told: total 1520.50 points, share 30.00 %, a 1.00 points, b 2.00 points, c 3.00 points" in markdown(
        figures, {}
    )
    assert "30.0 ± 20.0 %" in table({"told": aggregate(Told(), RECORDS)})


def test_ocrbench_s_final_score_is_in_points():
    from vlmkit.evaluation.benchmarks.ocrbench import OCRBench

    assert OCRBench.figure_units == {"final_score": "points"}


def test_how_it_was_made_is_told_only_where_it_is_known():
    figures = aggregate(Told(), RECORDS)
    assert "How these were made" not in markdown({"told": figures}, {})
    made = {
        "preset": "paper", "prompt_id": "x:1", "parser": "v", "judge": {"model": "m-1"}, "parse_failures": 0.2, "backend": None,
        "template": None, "pixel_limits": None, "decoding": {"strategy": "greedy", "dtype": None},
    }  # fmt: skip
    text = markdown({"told": made | figures}, {})
    assert "| told | paper | x:1 | unknown | unknown | unknown | strategy greedy | v | m-1 | 5 | 20.0% |" in text
    assert "lmms-eval (paper)" in text


def test_questions_on_one_image_are_one_cluster():
    """Four answers in two clusters: the residuals of a cluster are added before they are squared."""
    rows = [record(1, "right", cluster="x"), record(1, "right", cluster="x")]
    rows += [record(0, "wrong", cluster="y"), record(1, "right", cluster="y")]
    assert aggregate(Told(), rows)["stderr"] == pytest.approx(100 * (2 * (0.5**2 + 0.5**2)) ** 0.5 / 4, abs=1e-3)
    apart = [row | {"cluster": ""} for row in rows]
    assert aggregate(Told(), apart)["stderr"] == pytest.approx(100 * (0.75 / 3 / 4) ** 0.5, abs=1e-3)
    assert aggregate(Told(), rows[:2])["stderr"] is None


def test_labels_make_further_tables():
    rows = [record(1, "right", "a", task="x"), record(0, "wrong", "a", task="y"), record(1, "right", "b", task="x")]
    figures = aggregate(Told(), rows)
    assert figures["tables"]["task"]["x"]["score"] == 100.0
    assert figures["tables"]["task"]["x"]["n"] == 2
    assert "## told by task" in markdown({"told": figures}, {})


class Best(Told):
    """Its headline figure is no mean."""

    metric = "best"

    def figures(self, records):
        return {"best": 100 * max(record["score"] for record in records)}


def test_a_headline_figure_of_its_own_has_a_jackknifed_error():
    rows = [record(1, "right"), record(0, "wrong"), record(0, "wrong")]
    figures = aggregate(Best(), rows)
    assert (figures["score"], figures["accuracy"]) == (100.0, 33.3333)
    # Left out in turn: 0, 100, 100; their mean is 200/3.
    assert figures["stderr"] == pytest.approx((2 / 3 * ((200 / 3) ** 2 + 2 * (100 / 3) ** 2)) ** 0.5, abs=1e-3)
