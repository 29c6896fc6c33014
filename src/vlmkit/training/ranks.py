"""What ranks tell each other beside gradients: wishes, without anybody waiting, and objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def num_ranks() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them."""
    return dist.get_rank() if num_ranks() > 1 else 0


def gather(value: T) -> list[T]:
    """The value of every rank, by rank, on every rank; all must call."""
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


class Agreement:
    """What any rank wishes, made known to all at the end of the next step.

    A wish is sent while the next step runs and read when that ends, so no rank ever waits for another, or for its
    device. Alone, a rank hears itself at once.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo") if num_ranks() > 1 else None
        self._sent: tuple[torch.Tensor, Any] | None = None

    def exchange(self, wishes: Sequence[bool]) -> list[bool]:
        """Send this step's wishes; those that any rank had a step before. Every rank must call at every step."""
        if self._group is None:
            return list(wishes)
        heard = self._heard(len(wishes))
        flags = torch.tensor(wishes, dtype=torch.int32)
        self._sent = flags, dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return heard

    def agree(self, wish: bool) -> bool:
        """Whether any rank has sent this wish, now or with the last exchange; waits for all. Every rank must call."""
        heard = self.exchange([wish])[0]
        return self._heard(1)[0] or heard

    def close(self) -> None:
        """Hear what is still under way."""
        self._heard(0)

    def _heard(self, count: int) -> list[bool]:
        if self._sent is None:
            return [False] * count
        flags, work = self._sent
        work.wait()
        self._sent = None
        return flags.bool().tolist()
