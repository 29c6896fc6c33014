"""Ranks of one run stop together: when one fails, or vanishes, the others end within seconds, its error shown first.

Each rank asks the job's store twice a second whether any has failed, and looks at one other process: the next rank of its
own machine. So the cost of a rank does not grow with their number, and no file is involved. torchrun and srun supervise
their processes as well; they do not tell the survivors which rank was first, and end them only after half a minute.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress

from vlmkit.errors import VlmkitError
from vlmkit.processes import ProcessMark, this_process
from vlmkit.training.jobstore import POLL_SECONDS, JobStore, is_served_by_torchrun

_GRACE_SECONDS = 2.0
_LINGER_SECONDS = 15.0
"""How long the rank that serves the store stays at most after a failure, so that all others can read what it was."""
_FINISH_SECONDS = 60.0
"""How long it waits at the end for the others to finish."""
_FAILED, _HEARD, _WATCHED, _DONE = "failed", "heard", "watched", "done"


@contextmanager
def together(store: JobStore, *, program: str = "vlmkit-train") -> Generator[None]:
    """Stop all ranks when one fails, within seconds, and show the error of the first.

    A rank that fails puts its error into the store, prints it and leaves at once: what Lightning or the communication
    library would do on the way out may wait for the others. The others ask for it, and see when a process of their
    machine, or the one that serves the store, vanishes without a word.

    Args:
        store: Of the job; with one rank there is nothing to do.
        program: What messages begin with.
    """
    if store.num_ranks == 1:
        yield
        return
    watch = _Watch(store, program)
    watch.start()
    try:
        yield
    except Exception as error:
        watch.fail(error)
    watch.finish()


class _Watch(threading.Thread):
    """Watches the other ranks of a launch for one of them."""

    def __init__(self, store: JobStore, program: str) -> None:
        super().__init__(daemon=True, name="ranks")
        self.store = store
        self.program = program
        self.ended = threading.Event()
        self.reason: str | None = None
        self._leaving = threading.Lock()
        self._following: list[tuple[int, ProcessMark]] | None = None
        store.publish(_process_key(store.rank), this_process().to_text())
        store.count(_WATCHED, 1)

    def run(self) -> None:
        while not self.ended.wait(POLL_SECONDS):
            if self._look() and not self.ended.wait(_GRACE_SECONDS):
                self._leave(f"rank {self.store.rank} stopped: {self.reason}")

    def fail(self, error: Exception) -> None:
        """Print the error, if it is the first of all, and end this process."""
        rank = self.store.rank
        time.sleep(2 * POLL_SECONDS)  # a rank that has vanished is the cause of what was raised here; see it first
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        with suppress(RuntimeError):  # the store is gone: `_look` says so
            if self.reason is None:
                self._report_vanished(self._local_processes())
            if self.reason is None and self.store.claim(_FAILED, f"rank {rank} failed: {first_line}"):
                users = isinstance(error, VlmkitError)
                text = str(error) if users else "".join(traceback.format_exception(error))
                self._leave(f"rank {rank} failed: {text.rstrip()}")
        self._look()
        self._leave(f"rank {rank} stopped: {self.reason}")

    def finish(self) -> None:
        """Say that this rank has ended well. The one that serves the store stays until all have."""
        store = self.store
        with suppress(RuntimeError):
            store.publish(_done_key(store.rank), "")
            store.count(_DONE, 1)
            until = time.monotonic() + _FINISH_SECONDS
            while store.is_server and store.count(_DONE) < store.num_ranks and time.monotonic() < until:
                time.sleep(POLL_SECONDS / 5)
        self.ended.set()
        self.join()

    def _look(self) -> bool:
        """Whether a rank has failed or vanished; `reason` says which and why."""
        if self.reason is not None:
            return True
        try:
            self._report_vanished(self._next_process())
            if self.store.has(_FAILED):
                self.reason = self.store.read([_FAILED])[0].decode()
                self.store.count(_HEARD, 1)
        except RuntimeError:  # the store is gone
            if self.reason is not None:
                return True
            server = "torchrun" if is_served_by_torchrun() else "rank 0"
            self.reason = (
                f"{server} ended without a word (the store of the ranks is gone: killed, perhaps for want of memory)"
            )
        return self.reason is not None

    def _next_process(self) -> list[tuple[int, ProcessMark]]:
        """The next rank of this machine that is not done, once all ranks are here."""
        if self._following is None:
            if self.store.count(_WATCHED) < self.store.num_ranks:
                return []
            local = self._local_processes()
            self._following = [one for one in local if one[0] > self.store.rank]
            self._following += [one for one in local if one[0] < self.store.rank]
        while self._following and self._following[0][1].has_ended() and self._is_done(self._following[0][0]):
            del self._following[0]
        return self._following[:1]

    def _local_processes(self) -> list[tuple[int, ProcessMark]]:
        """The ranks of this machine that are here, and their processes."""
        store = self.store
        all_here = store.count(_WATCHED) == store.num_ranks
        ranks = [rank for rank in range(store.num_ranks) if all_here or store.has(_process_key(rank))]
        texts = self.store.read([_process_key(rank) for rank in ranks])
        marks = (ProcessMark.from_text(text.decode()) for text in texts)
        return [(rank, mark) for rank, mark in zip(ranks, marks, strict=True) if mark.is_local]

    def _report_vanished(self, processes: Iterable[tuple[int, ProcessMark]]) -> None:
        for rank, mark in processes:
            if not mark.has_ended():
                continue
            text = f"rank {rank} ended without a word ({mark}: killed, perhaps for want of memory)"
            if (
                rank == 0 and not is_served_by_torchrun()
            ):  # the store has gone with it, and it does not go before it is read
                self.reason = text
                return
            if not self._is_done(rank) and self.store.claim(_FAILED, text):
                self.store.count(_HEARD, 1)  # for the one that cannot
                self._say(text)
                self._look()

    def _is_done(self, rank: int) -> bool:
        return self.store.has(_done_key(rank))

    def _say(self, text: str) -> None:
        print(f"{self.program}: {text}", file=sys.stderr, flush=True)

    def _leave(self, text: str) -> None:
        self._leaving.acquire()  # never released: of two threads that leave, the second waits for the end
        sys.stdout.flush()
        self._say(text)
        if self.store.is_server:
            until = time.monotonic() + _LINGER_SECONDS
            others = self.store.count(_WATCHED) - 1
            while self.store.count(_HEARD) < others and time.monotonic() < until:
                time.sleep(POLL_SECONDS / 5)
            time.sleep(POLL_SECONDS / 5)  # the answer to the last of them is on its way
        os._exit(1)


def _process_key(rank: int) -> str:
    return f"process-{rank}"


def _done_key(rank: int) -> str:
    return f"done-{rank}"
