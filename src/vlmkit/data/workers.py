"""How the processes that load samples are started and set up."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from multiprocessing import forkserver

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 28


def settle_worker(_: int = 0) -> None:
    """One thread, since workers share the cores with training; and freed memory kept for the next sample.

    Where samples of many sizes come in turn, glibc gives their buffers back to the system and has every page made anew,
    which took a third of the time of a sample. Its parameters are described in mallopt(3); another C library ignores them.
    """
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_TRIM_THRESHOLD, 2 * _KEPT_BYTES)


def start_server() -> None:
    """Start the process that makes workers, deaf to the signals that end a job.

    A scheduler sends them to every process of the job. What to do about them is the main process's business, which saves
    after the current step; without its server it would take its workers for dead, and fail instead.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler or signal.SIG_DFL)


def start_worker(number: int) -> None:
    """A worker as every one is; and signals to the whole job are the main process's business."""
    settle_worker(number)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
