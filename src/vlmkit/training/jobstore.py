"""Small values that the ranks of one launch share from its first second: before they form a group, and outside of it.

torch's key-value store over TCP. torchrun serves one to the processes it starts; otherwise rank 0 does, on the port where
the group will form. Nothing here waits in a collective, so no time limit of one can run out, and Python hears signals.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_torch: Any = dist  # whose stubs leave the stores out
POLL_SECONDS = 0.5
_CONNECT_TIMEOUT = timedelta(minutes=30)
_MAX_BYTES = 4 << 20
"""Largest single value; torch's store refuses 8 MiB."""


class JobStore:
    """The store as one rank sees it.

    Every key begins with the identity of the launch, which rank 0 draws and the others read. So no value of an earlier
    launch is ever read, even where torchrun starts the ranks again beside the store that it goes on serving.

    Args:
        store: torch's; a `HashStore` where there is one rank only.
        rank: Of this process.
        num_ranks: Processes that share the store.
        is_server: Whether the store ends with this process.
        port: Where it listens.

    Attributes:
        launch: Identity of this launch, the same on all ranks.
    """

    def __init__(self, store: Any, *, rank: int, num_ranks: int, is_server: bool, port: int = 0) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.is_server = is_server
        self.port = port
        key = f"vlmkit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/launch"
        if rank == 0:
            store.set(key, uuid.uuid4().hex)
        self.launch: str = store.get(key).decode()
        self._store: Any = _torch.PrefixStore(self.launch, store)

    def publish(self, key: str, value: bytes | str) -> None:
        """Let every rank read a value."""
        self._store.set(key, value)

    def publish_long(self, key: str, value: bytes) -> None:
        """The same for a value of any size, in pieces that the store takes."""
        pieces = [value[start : start + _MAX_BYTES] for start in range(0, len(value), _MAX_BYTES)]
        for number, piece in enumerate(pieces):
            self.publish(f"{key}/{number}", piece)
        self.publish(key, str(len(pieces)))

    def has(self, key: str) -> bool:
        """Whether any rank has published it."""
        return bool(self._store.check([key]))

    def read(self, keys: list[str]) -> list[bytes]:
        """Values that have been published."""
        return list(self._store.multi_get(keys))

    def claim(self, key: str, value: str) -> bool:
        """Publish a value unless another rank has; whether it is this rank's."""
        return self._store.compare_set(key, "", value) == value.encode()

    def count(self, key: str, more: int = 0) -> int:
        """Add to a number that all ranks add to, from 0; the sum."""
        return int(self._store.add(key, more))

    def await_value(self, key: str) -> bytes:
        """Wait until a rank publishes a value, however long that takes."""
        while not self.has(key):
            time.sleep(POLL_SECONDS)
        return self.read([key])[0]

    def await_long(self, key: str) -> bytes:
        """The same for what `publish_long` publishes."""
        num_pieces = int(self.await_value(key))
        return b"".join(self.read([f"{key}/{number}"])[0] for number in range(num_pieces))

    def meet(self, key: str) -> None:
        """Wait until every rank is here, however long that takes. Each meeting needs a key of its own."""
        arrived = self.count(key, 1)
        while arrived < self.num_ranks:
            time.sleep(POLL_SECONDS)
            arrived = self.count(key)


def single_store() -> JobStore:
    """The store of a job of one rank."""
    return JobStore(_torch.HashStore(), rank=0, num_ranks=1, is_server=True)


def connect_store(address: str, port: int, *, rank: int, num_ranks: int) -> JobStore:
    """Serve the store of a job on rank 0, connect to it on the others.

    Args:
        address: Of rank 0's machine.
        port: The group of processes may form on the same one afterwards. 0 on rank 0: a free one.
        rank: Of this process.
        num_ranks: Processes of the job.
    """
    is_server = rank == 0 and not is_served_by_torchrun()
    store = _torch.TCPStore(
        address,
        port,
        is_master=is_server,
        timeout=_CONNECT_TIMEOUT,
        wait_for_workers=False,
        multi_tenant=True,  # torch's own store of the group joins it
    )
    return JobStore(store, rank=rank, num_ranks=num_ranks, is_server=is_server, port=store.port)


def is_served_by_torchrun() -> bool:
    """Whether this process is one of torchrun's, whose agent serves a store to them."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
