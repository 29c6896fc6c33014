"""Ranks of one run stop together: when one fails, or vanishes, the others end within seconds, its error shown first."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlmkit.errors import VlmkitError

_POLL_SECONDS = 0.25
_GRACE_SECONDS = 5.0


@contextmanager
def together(
    *, run_dir: Path, launch: str, rank: int, num_ranks: int, program: str = "vlmkit-train"
) -> Generator[None]:
    """Stop all ranks when one fails, within seconds, and show the error of the first.

    A rank that fails says so in a file beside the run, prints its error and leaves at once: what Lightning or the
    communication library would do on the way out may wait for the others. The others watch for that file, and for
    processes of this machine that vanish without a word.

    Args:
        run_dir: Seen by all ranks; the files are in a hidden folder there, removed at the end.
        launch: Names this start of the run, the same for all ranks.
        rank: Of this process.
        num_ranks: With one there is nothing to do.
        program: What messages begin with.
    """
    if num_ranks == 1:
        yield
        return
    watch = _Watch(run_dir / ".ranks" / launch, rank, program)
    watch.start()
    try:
        yield
    except Exception as error:
        watch.fail(error)
    watch.finish(num_ranks)


_PATIENCE = 10
"""Looks at a failure that is claimed and not told yet."""


class _Watch(threading.Thread):
    """The files of one start of a run, and the thread that watches them."""

    def __init__(self, directory: Path, rank: int, program: str) -> None:
        super().__init__(daemon=True, name="ranks")
        self.directory = directory
        self.rank = rank
        self.program = program
        self.failed = directory / "failed"
        self.ended = threading.Event()
        directory.mkdir(parents=True, exist_ok=True)
        mark = directory / f".rank-{rank}"
        mark.write_text(f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}")
        mark.rename(directory / f"rank-{rank}")

    def run(self) -> None:
        while not self.ended.wait(_POLL_SECONDS):
            if not self.directory.exists():
                return
            self._tell_of_the_dead()
            if self.failed.exists() and not self.ended.wait(_GRACE_SECONDS):
                self._leave(f"rank {self.rank} stopped: {self._reason()}")

    def fail(self, error: Exception) -> None:
        """Print the error, if it is the first of all, and end this process."""
        time.sleep(2 * _POLL_SECONDS)  # a dead neighbour is the cause of what was raised here; see it first
        self._tell_of_the_dead()
        if not self._claim(f"rank {self.rank} failed: {error}"):
            self._leave(f"rank {self.rank} stopped: {self._reason()}")
        text = str(error) if isinstance(error, VlmkitError) else "".join(traceback.format_exception(error))
        self._leave(f"rank {self.rank} failed: {text.rstrip()}")

    def finish(self, num_ranks: int) -> None:
        """Say that this rank has ended well; the last one cleans up."""
        self.ended.set()
        (self.directory / f"done-{self.rank}").touch()
        if len(list(self.directory.glob("done-*"))) == num_ranks:
            shutil.rmtree(self.directory, ignore_errors=True)
            with suppress(OSError):  # another start of the same run has files there
                self.directory.parent.rmdir()

    def _claim(self, text: str) -> bool:
        """Write the first failure; False where there is one already."""
        try:
            with self.failed.open("x") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _reason(self) -> str:
        """The first failure; whoever claimed it may still be about to write what it was."""
        for _ in range(_PATIENCE):
            if lines := self.failed.read_text().splitlines():
                return lines[0]
            time.sleep(_POLL_SECONDS)
        return "another rank failed and did not come to say why"

    def _tell_of_the_dead(self) -> None:
        for path in sorted(self.directory.glob("rank-*")):
            rank = int(path.name.removeprefix("rank-"))
            host, pid, started = path.read_text().split()
            gone = host == socket.gethostname() and _started(int(pid)) != started
            if gone and not (self.directory / f"done-{rank}").exists() and not self.failed.exists():
                text = f"rank {rank} ended without a word (process {pid}: killed, perhaps for want of memory)"
                if self._claim(text):
                    print(f"{self.program}: {text}", file=sys.stderr, flush=True)

    def _leave(self, text: str) -> None:
        sys.stdout.flush()
        print(f"{self.program}: {text}", file=sys.stderr, flush=True)
        os._exit(1)


def _started(pid: int) -> str:
    """When a process was started, as a mark that no later process of the same number has; `-`: it is gone."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except OSError:
            return "-"
        return "alive"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "-"
    return "-" if fields[0] in "ZX" else fields[19]
