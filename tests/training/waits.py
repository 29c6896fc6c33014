"""Finds what would make the host wait for a GPU, on a CPU: operations that read a tensor's values, and Python that copies.

On a GPU the host only queues work. It waits where it needs a value, or copies from memory that is not pinned; each wait
empties the queue. `Waits` watches a stretch of code. Operations are seen by a dispatch mode, in forward and backward; what
becomes no operation on a CPU (`tolist`, `.to` of a device, `torch.tensor(..., device=...)`) by replaced functions.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_consecutive",
    "aten::_unique2",
    "aten::repeat_interleave",
    "aten::equal",
}
_OUTSIDE = ("/torch/", "/contextlib.py", "/unittest/", __file__)


class Waits(TorchDispatchMode):
    """Collects waits while it is entered, as `operation at file:function`, the file the innermost outside PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.num_operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Note an operation that reads values."""
        self.num_operations += 1
        name, overload = func._schema.name, func._overloadname
        if name == "aten::repeat_interleave" and "output_size" in (kwargs or {}):
            pass  # its size is given: nothing is read
        elif name in READS or (name == "aten::index" and _masks(args[1])):
            self.note(name if overload in ("", "default") else f"{name}.{overload}")
        return func(*args, **(kwargs or {}))

    def note(self, what: str) -> None:
        """Keep what was done and who did it."""
        frame = sys._getframe(1)
        while frame and any(part in frame.f_code.co_filename for part in _OUTSIDE):
            frame = frame.f_back
        where = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}" if frame else "?"
        self.found.append(f"{what} at {where}")

    @contextmanager
    def watching(self):
        """Watch operations and Python."""
        with mock.patch.multiple(Tensor, **self._methods()), mock.patch.multiple(torch, **self._functions()), self:
            yield

    def _methods(self):
        def reading(name):
            stock = getattr(Tensor, name)

            def method(tensor, *args, **kwargs):
                self.note(f"Tensor.{name}")
                return stock(tensor, *args, **kwargs)

            return method

        stock_to = Tensor.to

        def to(tensor, *args, **kwargs):
            target = kwargs.get("device", args[0] if args else None)
            if isinstance(target, (str, int, torch.device)) and not kwargs.get("non_blocking"):
                self.note("Tensor.to(device)")
            return stock_to(tensor, *args, **kwargs)

        return {name: reading(name) for name in ("tolist", "numpy", "cpu", "cuda")} | {"to": to}

    def _functions(self):
        def copying(name):
            stock = getattr(torch, name)

            def function(*args, **kwargs):
                if kwargs.get("device") is not None:
                    self.note(f"torch.{name}(device=...)")
                return stock(*args, **kwargs)

            return function

        return {name: copying(name) for name in ("tensor", "as_tensor")}


def _masks(indices) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
