"""`vlmkit-compare` as a console command: two directories in, a table and a page out."""

from __future__ import annotations

import json

import pytest

from tests.evaluation.test_comparison import write
from tests.training.conftest import run
from vlmkit.cli.compare import with_directories


def test_directories_become_settings(tmp_path):
    sweep = tmp_path / "optim.lr=1e-3"
    sweep.mkdir()
    assert with_directories([str(sweep), "it's"]) == [f"first='{sweep}'", "second='it\\'s'"]
    assert with_directories(["runs/a/eval", "out=x", "runs/b c/eval"]) == [
        "first='runs/a/eval'",
        "out=x",
        "second='runs/b c/eval'",
    ]
    assert with_directories(["second=b", "a"]) == ["second=b", "first='a'"]
    assert with_directories(["a", "a"]) == ["first='a'", "second='a'"]
    assert with_directories(["--cfg", "job"]) == ["--cfg", "job"]
    assert with_directories(["runs/sweep", "seed=1"]) == ["sweep='runs/sweep'", "seed=1"]
    assert with_directories(["a", "out=x", "b c", "it's"]) == ["out=x", "runs=['a','b c','it\\'s']"]


def test_two_evaluations_and_what_cannot_be_compared(tmp_path):
    scores = {str(n): float(n < 5) for n in range(12)}
    write(tmp_path / "a", {"gqa": scores})
    write(tmp_path / "b", {"gqa": dict.fromkeys(scores, 1.0)})
    told = run("compare", str(tmp_path / "a"), str(tmp_path / "b"), f"out={tmp_path / 'c.html'}")
    assert "gqa        41.67  100.00  +58.33" in told
    assert "significant" in told
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert json.loads(page.split('id="data-differences">', 1)[1].split("</script>", 1)[0])[0]["better"] == 7


def test_several_runs_against_the_best_and_what_goes_together(tmp_path):
    for name, right in (("a", 4), ("b", 12), ("c", 11)):
        write(tmp_path / name / "eval", {"gqa": {str(n): float(n < right) for n in range(12)}})
    out = tmp_path / "page.html"
    told = run("compare", *(str(tmp_path / name) for name in "abc"), "metric=eval/gqa", f"out={out}")
    assert told.splitlines()[2].split()[:3] == ["1", str(tmp_path / "b"), "100.0"]
    assert "clearly worse" in told
    rows = json.loads(out.read_text(encoding="utf-8").split('id="data-rows">', 1)[1].split("</script>", 1)[0])
    assert [(row["name"], row["difference"]) for row in rows] == [
        (str(tmp_path / "c"), pytest.approx(-100 / 12)), (str(tmp_path / "a"), pytest.approx(-200 / 3)),
    ]  # fmt: skip
    told = run("compare", str(tmp_path / "a"), "first=x", "second=y", f"runs=[{tmp_path}]", status=1)
    assert "give one of the three" in told
    assert "no sweep.json, so it is no sweep" in run("compare", str(tmp_path), status=1)


@pytest.mark.slow
def test_other_protocols_are_refused(tmp_path):
    write(tmp_path / "a", {"gqa": {"1": 1.0}})
    write(tmp_path / "b", {"gqa": {"1": 1.0}}, gqa={"protocol": "vlmevalkit"})
    told = run("compare", str(tmp_path / "a"), str(tmp_path / "b"), f"out={tmp_path / 'c.html'}", status=1)
    assert told.startswith("vlmkit-compare: These evaluations cannot be compared:\n  gqa: protocol is 'lmms-eval' in ")
    assert not (tmp_path / "c.html").exists()
    assert "two evaluation directories are compared. Name both: vlmkit-compare runs/a/eval" in run("compare", status=1)
