"""Ranks of a launch share a store from its first second, and end together: the first error first, the others in seconds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.training import forked
from vlmkit.processes import ProcessMark, this_process
from vlmkit.training.jobstore import JobStore, connect_store, single_store
from vlmkit.training.together import together


def be_rank(rank: int, how: str, port: int, victim: int, output: str) -> None:
    """What one of three ranks does; in a process of its own."""
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    store = connect_store("127.0.0.1", port, rank=rank, num_ranks=3)
    with together(store):
        store.meet("all are here")
        if how == "raises" and rank == victim:
            raise ValueError("the disk is on fire")
        if how in ("vanishes", "takes others along") and rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "takes others along":
            time.sleep(0.1)
            raise RuntimeError("Connection closed by peer")  # what a collective says when a rank is gone
        if how in ("raises", "vanishes"):
            time.sleep(100)  # as in a collective that waits for the victim
        if how == "ends early" and rank != victim:
            time.sleep(3)  # long enough to notice that a process has gone


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_three(how: str, victim: int, folder: Path) -> tuple[list[int | None], list[str], float]:
    """Status and errors of three ranks, and how long they took."""
    port, started = free_port(), time.monotonic()
    ranks = [
        forked.context.Process(target=be_rank, args=(rank, how, port, victim, str(folder / str(rank))))
        for rank in range(3)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        rank.kill()
    told = [(folder / str(rank)).read_text() for rank in range(3)]
    return [rank.exitcode for rank in ranks], told, time.monotonic() - started


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_raises_stops_the_others_with_its_error_first(victim, tmp_path):
    statuses, told, seconds = run_three("raises", victim, tmp_path)
    assert statuses == [1, 1, 1]
    assert f"rank {victim} failed: Traceback" in told[victim]
    assert "the disk is on fire" in told[victim]
    for rank in {0, 1, 2} - {victim}:
        assert told[rank] == f"vlmkit-train: rank {rank} stopped: rank {victim} failed: the disk is on fire\n"
    assert seconds < 30


@pytest.mark.parametrize("how", ["vanishes", "takes others along"])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_vanishes_stops_the_others(victim, how, tmp_path):
    statuses, told, seconds = run_three(how, victim, tmp_path)
    assert [status for rank, status in enumerate(statuses) if rank != victim] == [1, 1]
    assert told[victim] == ""
    for rank in {0, 1, 2} - {victim}:
        assert f"rank {rank} stopped: rank {victim} ended without a word" in told[rank]
        assert "Connection closed" not in told[rank], "the consequence is not shown as the cause"
    assert seconds < 30


@pytest.mark.parametrize("how", ["ends", "ends early"])
def test_ranks_that_end_well_disturb_nobody(how, tmp_path):
    statuses, told, _ = run_three(how, 1, tmp_path)
    assert statuses == [0, 0, 0]
    assert told == ["", "", ""]


def test_a_launch_beside_the_store_of_an_earlier_one_reads_nothing_of_it(monkeypatch):
    """torchrun goes on serving its store when it starts the ranks again, and a fixed port is used again."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=10), wait_for_workers=False)

    def rank(number: int, restart: int) -> JobStore:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        return connect_store("127.0.0.1", server.port, rank=number, num_ranks=2)

    first = [rank(number, restart=0) for number in range(2)]
    assert first[0].launch == first[1].launch
    assert not any(store.is_server for store in first)
    assert first[0].claim("failed", "rank 1 failed")
    assert not first[1].claim("failed", "rank 0 failed")
    assert first[1].read(["failed"]) == [b"rank 1 failed"]
    again = [rank(number, restart=1) for number in range(2)]
    assert again[0].launch == again[1].launch != first[0].launch
    assert not any(store.has("failed") for store in again)


def test_a_job_of_one_rank_has_a_store_too():
    store = single_store()
    store.publish("a", b"1")
    store.meet("here")
    assert (store.has("a"), store.has("b"), store.read(["a"]), store.await_value("a")) == (True, False, [b"1"], b"1")
    assert (store.count("n", 2), store.count("n")) == (2, 2)


def test_a_process_is_known_by_its_start_and_its_machine():
    mark = this_process()
    assert ProcessMark.from_text(mark.to_text()) == mark
    assert mark.is_local
    assert not mark.has_ended()
    later = ProcessMark(host=mark.host, space=mark.space, pid=mark.pid, started="0")
    assert later.has_ended(), "a later process of the same number is another one"
    elsewhere = ProcessMark(host=mark.host, space="another machine", pid=2**22 + 1, started="0")
    assert not elsewhere.is_local
    assert not elsewhere.has_ended()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    stat = f"/proc/{child.pid}/stat"
    if os.path.exists(stat):
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert ProcessMark(host=mark.host, space=mark.space, pid=child.pid, started="5").has_ended()
    with pytest.raises(ValueError, match="not the mark"):
        ProcessMark.from_text("{}")
