"""Jobs as processes: whatever befalls one, the others go on, and what is done is not done again."""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sweeps.standins import WAITS, Log, job
from vlmkit.errors import ConfigError, Interrupted
from vlmkit.sweeps.job import Claim, Outcome, jobs_before, outcome_before, read_job, write_job
from vlmkit.sweeps.processes import LocalProcesses
from vlmkit.sweeps.running import last_words, run_jobs


def run(*jobs, log=None, num_parallel=1, devices=None, show_output=False):
    log = log or Log()
    launching = LocalProcesses(num_parallel=num_parallel, devices=devices)
    run_jobs(iter(jobs), directory=Path(), launching=launching, watching=log, show_output=show_output)
    return log


def test_one_that_fails_or_is_killed_ends_no_other(tmp_path):
    log = run(
        job(tmp_path, "a", "os.kill(os.getpid(), signal.SIGKILL)"),
        job(
            tmp_path,
            "b",
            "print('epoch 1'); sys.exit('vlmkit-train: freeze: nothing would be trained.\\nTrain a part.')",
        ),
        job(tmp_path, "c", "{}['gone']"),
        job(tmp_path, "d", "sys.exit(3)"),
        job(tmp_path, "e", "print('did nothing')"),
        job(tmp_path, "f"),
    )
    assert log.states == dict.fromkeys("abcde", "failed") | {"f": "finished"}
    errors = {name: outcome.error for name, outcome in log.outcomes.items()}
    assert errors == {
        "a": "killed by SIGKILL (the system ends a process so when memory runs out)",
        "b": "freeze: nothing would be trained.\nTrain a part.",
        "c": "KeyError: 'gone'",
        "d": "ended with status 3 and said nothing",
        "e": "did nothing",
        "f": None,
    }
    assert read_job(tmp_path / "a")["state"] == "failed"
    assert "Traceback" in (tmp_path / "c" / "output.log").read_text()


def test_what_is_finished_is_not_run_again_and_what_failed_is(tmp_path):
    counts = "with (here / 'count').open('a') as file: file.write('x')\n"
    fails_once = counts + "if len((here / 'count').read_text()) < 2: sys.exit(1)\nfinish()"
    jobs = [job(tmp_path, "a", counts + "finish()"), job(tmp_path, "b", fails_once)]
    assert run(*jobs).states == {"a": "finished", "b": "failed"}
    log = run(*jobs)
    assert log.states == {"a": "finished", "b": "finished"}
    assert log.starts == ["b"]
    assert ((tmp_path / "a" / "count").read_text(), (tmp_path / "b" / "count").read_text()) == ("x", "xx")
    assert (log.outcomes["b"].attempts, log.outcomes["a"].attempts) == (2, 1)
    assert {one.name: outcome.state for one, outcome in jobs_before(tmp_path)} == {"a": "finished", "b": "finished"}


def test_a_directory_with_a_run_of_other_settings_is_refused(tmp_path):
    one = job(tmp_path, "a", lr="1")
    run(one)
    other = replace(one, config={"settings": {"lr": "1"}, "optim": {"decay": 0.1}, "log": {"progress": False}})
    with pytest.raises(ConfigError, match=r"a holds a run with other settings: optim\.decay was not there, now 0\.1"):
        run(other)
    run(replace(one, config={**one.config, "run_dir": "elsewhere", "log": {"every_n_steps": 3}}))


def test_a_run_that_a_dead_sweep_left_is_taken_up(tmp_path):
    one = job(tmp_path, "a")
    write_job(one, Outcome(state="running", seconds=5.0, attempts=1))
    assert outcome_before(one).state == "interrupted"
    log = run(one)
    assert log.states == {"a": "finished"}
    assert log.outcomes["a"].attempts == 2
    assert log.outcomes["a"].seconds > 5.0
    (one.run_dir / "report.json").unlink()
    assert outcome_before(one).state == "interrupted"


def test_a_run_that_is_still_under_way_is_left_alone(tmp_path):
    one = job(tmp_path, "a")
    claim = Claim(one.run_dir)
    with pytest.raises(ConfigError, match="a run is still under way there"):
        run(one)
    claim.release()
    claim.release()
    assert run(one).states == {"a": "finished"}


def test_the_process_holds_the_claim_when_the_sweep_is_gone(tmp_path):
    one = job(tmp_path, "a", WAITS)
    claim = Claim(one.run_dir)
    process = LocalProcesses(num_parallel=1, devices=None).start(one, claim, 0)
    claim.release()
    with pytest.raises(ConfigError, match="still under way"):
        Claim(one.run_dir)
    process.kill()
    Claim(one.run_dir).release()


class Signals(Log):
    """Sends this process signals once a job stands ready."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.numbers = list(numbers)

    def stop_early(self, job):
        if self.numbers and (job.run_dir / "ready").exists():
            os.kill(os.getpid(), self.numbers.pop(0))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_runs_save_and_starts_no_other(tmp_path, number):
    before = signal.getsignal(number)
    log = Signals(number)
    with pytest.raises(
        Interrupted, match=f"{number.name}: the runs under way were saved. Run the same command with run_dir="
    ):
        run(job(tmp_path, "a", WAITS), job(tmp_path, "b"), log=log)
    assert log.states == {"a": "interrupted"}
    assert log.starts == ["a"]
    assert Interrupted.status == 75
    assert signal.getsignal(number) is before


def test_a_second_signal_kills(tmp_path):
    deaf = """
signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGINT))
(here / "ready").touch()
while True: signal.pause()
"""
    log = Signals(signal.SIGINT)
    with pytest.raises(Interrupted):
        run(job(tmp_path, "a", deaf), log=log)
    assert log.states == {"a": "interrupted"}


def test_a_run_may_be_ended_early(tmp_path):
    log = run(job(tmp_path, "a", WAITS), job(tmp_path, "b"), log=Log({"a": "it falls behind"}))
    assert log.states == {"a": "pruned", "b": "finished"}
    assert log.outcomes["a"].error == "it falls behind"
    assert run(job(tmp_path, "a", WAITS)).starts == []


def test_two_at_a_time_with_devices_of_their_own(tmp_path):
    """Each opens one end of a pipe, which waits for the other end."""
    os.mkfifo(tmp_path / "pipe")
    ends = [
        f"open({str(tmp_path / 'pipe')!r}, '{mode}').close()\nprint(os.environ['CUDA_VISIBLE_DEVICES'])\nfinish()"
        for mode in "rw"
    ]
    jobs = [job(tmp_path, name, code) for name, code in zip("ab", ends, strict=True)]
    assert run(*jobs, num_parallel=2, devices=[4, 5, 6, 7]).states == {"a": "finished", "b": "finished"}
    assert [(tmp_path / name / "output.log").read_text() for name in "ab"] == ["4,5\n", "6,7\n"]


def test_devices_that_cannot_be_dealt_are_told():
    with pytest.raises(
        ConfigError, match=r"hydra\.launcher\.devices=\[0, 1, 2\]: 3 devices cannot be dealt evenly to 2"
    ):
        LocalProcesses(num_parallel=2, devices=[0, 1, 2])
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.num_parallel=0: wanted at least 1"):
        LocalProcesses(num_parallel=0, devices=None)


def test_what_a_run_prints_is_shown_as_it_comes(tmp_path, capsys):
    run(job(tmp_path, "a", "print('first', flush=True)\nsys.stderr.write('second\\n')\nfinish()"), show_output=True)
    assert capsys.readouterr().out == "first\nsecond\n"


def test_what_a_run_leaves_behind_is_ended_with_it(tmp_path):
    code = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
(here / "child").write_text(str(child.pid))
finish()
os._exit(0)
"""
    run(job(tmp_path, "a", code))
    pid = int((tmp_path / "a" / "child").read_text())
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        assert select.select([handle], [], [], 30)[0], "it lives on"
        os.close(handle)


def test_last_words_are_of_this_attempt_and_not_endless(tmp_path):
    path = tmp_path / "output.log"
    path.write_text("vlmkit-train: old\n")
    size = path.stat().st_size
    with path.open("a") as file:
        file.write("10%|#   |\r20%|##  |\r" + "x" * 2000 + "\n  indented\n")
    assert last_words(path, size) == "x" * 599 + "…"
    assert last_words(path).startswith("old\n")
    assert last_words(tmp_path / "none") == ""


def test_job_json_is_what_it_says(tmp_path):
    one = job(tmp_path, "a", lr="1e-05")
    run(one)
    told = json.loads((tmp_path / "a" / "job.json").read_text())
    assert told.pop("seconds") > 0
    assert told == {
        "schema": "vlmkit.job/1", "name": "a", "settings": {"lr": "1e-05"}, "state": "finished", "error": None,
        "attempts": 1, "command": list(one.command), "config": {"settings": {"lr": "1e-05"}},
    }  # fmt: skip
