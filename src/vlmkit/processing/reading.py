"""Read videos in a process of its own, which can be stopped where a library hangs and may crash without harm.

The process lives as long as its parent and answers one request after the other: a line of JSON in; a line of JSON, then the
bytes of the frames, out. Run as `python -m vlmkit.processing.reading READER`.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from vlmkit.processing.readers import ReadError, VideoHeader, make_reader

START_SECONDS = 120.0
"""How long a library may take to be loaded."""
_PR_SET_PDEATHSIG = 1
_CHUNK_BYTES = 1 << 20


class ReadTimeout(Exception):
    """A read took longer than it may; its process was stopped."""


class ReadingProcess:
    """Reads videos in another process; a `VideoReader` with a limit.

    Args:
        reader: One of `READERS`, or that of animations.
        timeout_seconds: Longest time of one read.
    """

    def __init__(self, reader: str, *, timeout_seconds: float) -> None:
        self.reader = reader
        self.timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        atexit.register(self.close)

    @property
    def pid(self) -> int | None:
        """Of the process that reads, while there is one."""
        return self._process.pid if self._process else None

    def header(self, path: Path) -> VideoHeader:
        """See `VideoReader`.

        Raises:
            ReadError: the file is no video, or the library crashed on it.
            ReadTimeout: it took too long.
        """
        told, _ = self._ask({"op": "header", "path": str(path)})
        return VideoHeader(**told["header"])

    def frames(self, path: Path, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `VideoReader`.

        Raises:
            ReadError: the file cannot be decoded at these frames, or the library crashed on it.
            ReadTimeout: it took too long.
        """
        told, content = self._ask({"op": "frames", "path": str(path), "indices": list(indices)})
        return np.frombuffer(content, dtype=np.uint8).reshape(told["shape"])

    def close(self) -> None:
        """Stop the process, hung or not."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            cast(BinaryIO, pipe).close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # copied into a forked process: the other one is its parent's
            self._process, self._owner = None, os.getpid()
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vlmkit.processing.reading", self.reader],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            bufsize=0,
        )
        self._line(self._process, bytearray(), time.monotonic() + START_SECONDS)
        return self._process

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
        """The reply, and the bytes behind it."""
        process = self._started()
        deadline = time.monotonic() + self.timeout_seconds
        try:
            cast(BinaryIO, process.stdin).write(json.dumps(request).encode() + b"\n")
            rest = bytearray()
            told = json.loads(self._line(process, rest, deadline))
            size = int(np.prod(told["shape"])) if "shape" in told else 0
            while len(rest) < size:
                rest += self._some(process, deadline, size - len(rest))
        except BrokenPipeError as error:
            raise ReadError(self._ended()) from error
        if "error" in told:
            raise ReadError(told["error"])
        return told, rest

    def _line(self, process: subprocess.Popen[bytes], rest: bytearray, deadline: float) -> bytes:
        """The first line that comes; what is behind it goes into `rest`."""
        while b"\n" not in rest:
            rest += self._some(process, deadline, _CHUNK_BYTES)
        line, _, behind = bytes(rest).partition(b"\n")
        rest[:] = behind
        return line

    def _some(self, process: subprocess.Popen[bytes], deadline: float, most: int) -> bytes:
        pipe = cast(BinaryIO, process.stdout)
        if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            self.close()
            raise ReadTimeout
        if not (found := os.read(pipe.fileno(), min(most, _CHUNK_BYTES))):
            raise ReadError(self._ended())
        return found

    def _ended(self) -> str:
        process = self._process
        status = process.wait() if process else None
        self.close()
        return f"{self.reader} ended with status {status} on it"


def serve(name: str) -> None:
    """Answer requests from standard input until it closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not come between
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # signals to the whole job are the main process's business
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # even a hung reader ends with its parent
    reader = make_reader(name)
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        frames: NDArray[np.uint8] | None = None
        try:
            if request["op"] == "header":
                told: dict[str, Any] = {"header": vars(reader.header(Path(request["path"])))}
            else:
                frames = np.ascontiguousarray(reader.frames(Path(request["path"]), request["indices"]))
                told = {"shape": frames.shape}
        except Exception as error:  # whatever a library raises is about this file; the next one may be sound
            told = {"error": str(error) if isinstance(error, ReadError) else f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(told).encode() + b"\n")
        if frames is not None:
            answers.write(frames.reshape(-1).data)
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
