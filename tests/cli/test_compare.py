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
    with pytest.raises(SystemExit, match="two evaluation directories are compared, not 3: a, b, c"):
        with_directories(["a", "b", "c"])


def test_two_evaluations_and_what_cannot_be_compared(tmp_path):
    scores = {str(n): float(n < 5) for n in range(12)}
    write(tmp_path / "a", {"gqa": scores})
    write(tmp_path / "b", {"gqa": dict.fromkeys(scores, 1.0)})
    told = run("compare", str(tmp_path / "a"), str(tmp_path / "b"), f"out={tmp_path / 'c.html'}")
    assert "gqa        41.67  100.00  +58.33" in told
    assert "significant" in told
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert json.loads(page.split('id="data-differences">', 1)[1].split("</script>", 1)[0])[0]["better"] == 7


@pytest.mark.slow
def test_other_protocols_are_refused(tmp_path):
    write(tmp_path / "a", {"gqa": {"1": 1.0}})
    write(tmp_path / "b", {"gqa": {"1": 1.0}}, gqa={"protocol": "vlmevalkit"})
    told = run("compare", str(tmp_path / "a"), str(tmp_path / "b"), f"out={tmp_path / 'c.html'}", status=1)
    assert told.startswith("vlmkit-compare: These evaluations cannot be compared:\n  gqa: protocol is 'lmms-eval' in ")
    assert not (tmp_path / "c.html").exists()
    assert "two evaluation directories are compared. Name both: vlmkit-compare runs/a/eval" in run("compare", status=1)
