"""Figures by hand, and the contracts of the files."""

from __future__ import annotations

import json

import pytest

from vlmkit.evaluation.aggregate import aggregate
from vlmkit.evaluation.report import markdown, table, write_reports


class Told:
    name, metric, protocol, source = "told", "exact_match", "lmms-eval", "here"

    def __init__(self, **baselines):
        self._baselines = baselines

    def baselines(self):
        return self._baselines


def record(score, outcome, category=""):
    return {"score": score, "outcome": outcome, "category": category, "seconds": 0.5}


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
    assert figures["seconds"] == 2.5
    assert figures["by_category"]["b"] == {"score": 16.6667, "n": 3, "stderr": 16.6667, "parsed": 0.3333}
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
