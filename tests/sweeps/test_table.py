"""The table of a sweep: order, ranks, what is told in each form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sweeps.standins import Log, job
from vlmkit.errors import VlmkitError
from vlmkit.sweeps.board import Board, SweepFailed
from vlmkit.sweeps.job import Outcome
from vlmkit.sweeps.processes import LocalProcesses
from vlmkit.sweeps.running import run_jobs
from vlmkit.sweeps.table import duration, make_table, markdown, read_sweep, text, to_json, write_table


def runs_of(tmp_path, **codes):
    """Runs that really ran, with how they ended."""
    log = Log()
    jobs = [job(tmp_path, name, code, lr=name, freeze="none") for name, code in codes.items()]
    run_jobs(
        iter(jobs),
        directory=tmp_path,
        launching=LocalProcesses(num_parallel=1, devices=None),
        watching=log,
        show_output=False,
    )
    return [(one, log.outcomes[one.name]) for one in jobs]


def scored(loss, more=""):
    return f"log(1, 9.0)\nvalidate(1, val_loss={loss}{more})\nfinish()"


def test_finished_runs_stand_first_best_first_and_equal_ones_share_a_rank(tmp_path):
    runs = runs_of(
        tmp_path,
        a=scored(2.0),
        b="log(1, 0.1)\nsys.exit('vlmkit-train: no | such | file')",
        c=scored(1.0),
        d=scored(2.0),
        e="finish()",
    )
    table = make_table(tmp_path, [*runs, (job(tmp_path, "f"), Outcome(state="waiting"))], metric=None)
    assert table.metric == "train/loss", "what all finished runs measured"
    table = make_table(tmp_path, [*runs, (job(tmp_path, "f"), Outcome(state="waiting"))], metric="val/loss")
    assert [(row.name, row.rank) for row in table.rows] == [
        ("c", 1),
        ("a", 2),
        ("d", 2),
        ("e", None),
        ("f", None),
        ("b", None),
    ]
    assert table.best is table.rows[0]
    assert table.keys == {"optim.lr": "lr"} or table.keys == {"lr": "lr", "freeze": "freeze"}
    lines = text(table).splitlines()
    assert lines[0].split() == [
        "#",
        "lr",
        "freeze",
        "val/loss",
        "95",
        "%",
        "interval",
        "train/loss",
        "steps",
        "time",
        "state",
        "run",
    ]
    assert lines[2].split()[:4] == ["1", "c", "none", "1.0000"]
    assert "b: failed: no | such | file" in lines
    assert "6 runs: 4 finished, 1 waiting, 1 failed. Ranked by val/loss (lower is better)" in text(table)


def test_higher_is_better_for_a_benchmark(tmp_path):
    runs = runs_of(tmp_path, a=scored(1.0, ", eval_shapes_score=20.0"), b=scored(2.0, ", eval_shapes_score=30.0"))
    table = make_table(tmp_path, runs, metric=None)
    assert (table.metric, table.best.name) == ("eval/shapes/score", "b")
    assert table.keys == {"lr": "lr"}, "freeze is the same in both"
    assert "| 1 | b | 30.0 | - | 2.0000 | 9.0000 | 1 | 0 s | finished | [b](b/) |" in markdown(table)


def test_the_files_hold_the_table(tmp_path):
    runs = runs_of(tmp_path, a=scored(2.0), b="sys.exit(1)", c=scored(1.0))
    table = make_table(tmp_path, runs, metric=None)
    write_table(table)
    told = read_sweep(tmp_path)
    assert told == json.loads(json.dumps(to_json(table)))
    assert told["schema"] == "vlmkit.sweep/1"
    assert [(run["name"], run["rank"], run["state"]) for run in told["runs"]] == [
        ("c", 1, "finished"),
        ("a", 2, "finished"),
        ("b", None, "failed"),
    ]
    assert told["runs"][0]["scores"]["val/loss"] == {"value": 1.0, "stderr": None, "interval": None, "step": 1}
    written = (tmp_path / "sweep.md").read_text()
    assert "- b: failed: ended with status 1" in written
    with pytest.raises(VlmkitError, match=r"no sweep\.json, so it is no sweep"):
        read_sweep(tmp_path / "a")


def test_a_board_tells_and_fails_at_the_end(tmp_path, capsys):
    jobs = [job(tmp_path, "a", scored(2.0), lr="1"), job(tmp_path, "b", "sys.exit('vlmkit-train: broken')", lr="2")]
    board = Board(
        directory=tmp_path,
        metric=None,
        jobs=jobs,
        total=2,
        write_page=lambda table, path: path.write_text(table.metric),
    )
    launching = LocalProcesses(num_parallel=1, devices=None)
    run_jobs(iter(jobs), directory=Path(), launching=launching, watching=board, show_output=False)
    with pytest.raises(SweepFailed, match=r"^1 of 2 runs have no result: b\. Run the same command with run_dir="):
        board.finish()
    told = capsys.readouterr().out
    assert f"[1/2] a: started; it prints to {tmp_path / 'a' / 'output.log'}" in told
    assert "[1/2] a: finished in 0 s, val/loss 2.0000" in told
    assert "[2/2] b: failed in 0 s: broken" in told
    assert f"Best: {tmp_path / 'a'}. Next: vlmkit-eval ckpt={tmp_path / 'a'}" in told
    assert (tmp_path / "sweep.html").read_text() == "val/loss"


def test_a_metric_that_no_run_measured_is_told(tmp_path, capsys):
    ((one, _),) = runs_of(tmp_path, a=scored(2.0))
    board = Board(directory=tmp_path, metric="val/los", jobs=[one], total=1, write_page=lambda table, path: None)
    board.ended(one, Outcome(state="finished"))
    with pytest.raises(
        SweepFailed, match=r"sweep\.metric=val/los: no run measured it\. Choose one of train/loss, val/loss\."
    ):
        board.finish()


def test_times_are_told_as_people_say_them():
    assert [duration(seconds) for seconds in (0.4, 59.6, 200, 7500)] == ["0 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
