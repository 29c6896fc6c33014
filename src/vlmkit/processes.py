"""Which process of which machine this is, and whether such a process has ended."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ProcessMark:
    """Names a process so that no later process of the same number is taken for it.

    Attributes:
        host: Name of its machine, for messages.
        space: Start of that machine and its namespaces; containers of the same host name differ in it.
        pid: Its number there.
        started: When it was started, in the machine's own units.
    """

    host: str
    space: str
    pid: int
    started: str

    @classmethod
    def from_text(cls, text: str) -> ProcessMark:
        """Read what `to_text` wrote.

        Raises:
            ValueError: `text` is something else.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"not the mark of a process: {text[:100]}") from error

    def to_text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @property
    def is_local(self) -> bool:
        """Whether this machine can see if it runs."""
        return self.space == _space()

    def has_ended(self) -> bool:
        """Whether it has certainly ended; False for a process of another machine."""
        return self.is_local and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}"


def this_process() -> ProcessMark:
    """The mark of the calling process."""
    pid = os.getpid()
    return ProcessMark(host=socket.gethostname(), space=_space(), pid=pid, started=_started(pid))


@cache
def _space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return " ".join([boot, os.readlink("/proc/self/ns/pid"), os.readlink("/proc/self/ns/net")])
    except OSError:  # not Linux
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process was started; `-` if it has ended."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except OSError:
            return "-"
        return "running"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "-"
    return "-" if fields[0] in "ZX" else fields[19]
