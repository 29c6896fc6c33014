"""Reads that are tried again: a network disk fails for moments, and a run of days should not end by it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

from vlmkit.errors import VlmkitError

T = TypeVar("T")
RETRY_SECONDS = (0.1, 0.5, 2.0)
"""Pauses between the attempts of one read."""
NUM_READS = len(RETRY_SECONDS) + 1
PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET, errno.ENOTCONN, errno.EHOSTDOWN}
)
"""What network file systems report while a server or a line is away."""


def may_pass(error: BaseException) -> bool:
    """Whether an error is one of a disk that may answer later; libraries that read videos tell it in words only."""
    number = getattr(error, "errno", None)
    return number in PASSING or any(os.strerror(known) in str(error) for known in (errno.EIO, errno.ESTALE))


def try_again(read: Callable[[], T]) -> T:
    """Call `read`, and again after a pause where it fails by an error that may pass."""
    for seconds in RETRY_SECONDS:
        try:
            return read()
        except Exception as error:
            if isinstance(error, VlmkitError) or not may_pass(error):
                raise
        time.sleep(seconds)
    return read()
