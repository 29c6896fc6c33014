"""Counts what a step allocates and computes, operation by operation, on real or on fake tensors.

PyTorch's own `MemTracker` puts a gradient hook on every parameter, frozen ones too, and raises there (torch 2.14), so
models with frozen parts need this one. It sees what is dispatched: tensors, not the workspace inside a kernel.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from vlmkit.batch import Batch
from vlmkit.training.masters import MasterOptimizer

Kind = Literal["parameters", "gathered", "gradients", "optimizer", "batch", "activations", "temporary"]
KINDS: tuple[Kind, ...] = ("parameters", "gathered", "gradients", "optimizer", "batch", "activations", "temporary")
"""What memory is for; `gathered` are parameters that FSDP2 holds whole while their unit runs, and DDP's buckets of gradients."""
_GROUPED_PRODUCT = torch.ops.aten._grouped_mm
_BLOCK_BYTES = 512
"""What PyTorch's CUDA allocator rounds every allocation up to (c10/cuda/CUDACachingAllocator, `kMinBlockSize`)."""


@dataclass(frozen=True)
class Collective:
    """What ranks exchange at once.

    Attributes:
        name: Operation of `torch.distributed`, such as `_allgather_base_`.
        num_bytes: Of the largest tensor that takes part: the whole one, of which each rank has or gets a part.
    """

    name: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the operations of a phase do.

    Attributes:
        matmul_flops: Of matrix products.
        moved_bytes: Read and written by all other operations, views excepted: each argument once, each result once.
        num_operations: Operations that start a kernel.
        collectives: In their order.
    """

    matmul_flops: float
    moved_bytes: float
    num_operations: int
    collectives: tuple[Collective, ...] = ()

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(
            matmul_flops=self.matmul_flops - earlier.matmul_flops,
            moved_bytes=self.moved_bytes - earlier.moved_bytes,
            num_operations=self.num_operations - earlier.num_operations,
            collectives=self.collectives[len(earlier.collectives) :],
        )


class StepTracker(TorchDispatchMode):
    """While active, follows every storage from its allocation to its release.

    Attributes:
        peak_bytes: The most that was allocated at once.
        at_peak: The same, by kind.
        live: What is allocated now, by kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[Kind] = Counter()
        self.at_peak: Counter[Kind] = Counter()
        self.peak_bytes = 0
        self.matmul_flops = 0.0
        self.moved_bytes = 0.0
        self.num_operations = 0
        self.collectives: list[Collective] = []
        self._sizes: dict[weakref.ref[Any], tuple[Kind, int]] = {}
        self._phase: Kind = "temporary"

    def follow_step(self, module: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
        """Count what a step starts from: parameters, gradients (also those to come), the optimiser's tensors, the batch."""
        for tensor in (*module.parameters(), *module.buffers()):
            self.follow(tensor, "parameters")
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._follow_gradient)
                self._follow_gradient(parameter)
        states = (
            [optimizer.state, optimizer.inner.state] if isinstance(optimizer, MasterOptimizer) else [optimizer.state]
        )
        masters = optimizer.masters if isinstance(optimizer, MasterOptimizer) else []
        for leaf in tree_leaves((list(map(dict, states)), masters)):
            if isinstance(leaf, Tensor):
                self.follow(leaf, "optimizer")
        for value in batch.values():
            if isinstance(value, Tensor):
                self.follow(value, "batch")

    def follow(self, tensor: Tensor, kind: Kind) -> None:
        """Count the memory of a tensor under a kind, from now on."""
        local = (
            cast(Any, tensor)._local_tensor if isinstance(tensor, DTensor) else tensor
        )  # `to_local()` would dispatch
        storage = local.untyped_storage()
        if (reference := weakref.ref(storage)) in self._sizes:
            before, size = self._sizes[reference]
            self._sizes[reference] = (kind, size)
            self.live[before] -= size
            self.live[kind] += size
            return
        size = _rounded(storage.nbytes())
        self._sizes[weakref.ref(storage, self._release)] = (kind, size)
        self._grow(kind, size)

    @contextmanager
    def phase(self, kind: Kind) -> Generator[None]:
        """Inside, what is allocated is of a kind, unless it turns out to be a gradient."""
        before, self._phase = self._phase, kind
        try:
            yield
        finally:
            self._phase = before

    def traffic(self) -> Traffic:
        """What was computed so far."""
        return Traffic(
            matmul_flops=self.matmul_flops,
            moved_bytes=self.moved_bytes,
            num_operations=self.num_operations,
            collectives=tuple(self.collectives),
        )

    def __enter__(self) -> StepTracker:
        tracker, self._resize = self, torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            result = tracker._resize(storage, size)
            tracker._follow_size(storage)
            return result

        # FSDP2 frees and takes a unit's whole parameters by resizing their storage, which nothing dispatches.
        cast(Any, torch.UntypedStorage).resize_ = resize
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        cast(Any, torch.UntypedStorage).resize_ = self._resize

    def _follow_size(self, storage: torch.UntypedStorage) -> None:
        reference = weakref.ref(storage)
        if reference in self._sizes:
            kind, before = self._sizes[reference]
            self.live[kind] -= before
            size = _rounded(storage.nbytes())
            self._sizes[reference] = ("gathered", size)
            self._grow("gathered", size)

    def _grow(self, kind: Kind, size: int) -> None:
        self.live[kind] += size
        if (total := sum(self.live.values())) > self.peak_bytes:
            self.peak_bytes, self.at_peak = total, self.live.copy()

    def _follow_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.follow(parameter.grad, "gradients")

    def _release(self, reference: weakref.ref[Any]) -> None:
        kind, size = self._sizes.pop(reference)
        self.live[kind] -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it allocated and computed."""
        if func._overloadpacket is torch.ops.aten.logsumexp:  # noqa: SLF001  # the name of the operation
            # Its kernels, on a CPU and on CUDA, hold exp(input - maximum) on the way, out of sight of a dispatch mode.
            self._grow("temporary", args[0].nbytes)
            self._grow("temporary", -args[0].nbytes)
        results = _call(func, args, kwargs or {})
        tensors = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            if weakref.ref(tensor.untyped_storage()) not in self._sizes:
                self.follow(tensor, self._phase)
        self._count(func, args, kwargs or {}, results, tensors)
        return results

    def _count(self, func: Any, args: Any, kwargs: dict[str, Any], results: Any, tensors: list[Tensor]) -> None:
        packet = func._overloadpacket  # noqa: SLF001  # the key of PyTorch's own registry
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func.namespace in ("c10d", "_c10d_functional"):
            largest = max((tensor.nbytes for tensor in (*given, *tensors)), default=0)
            self.collectives.append(Collective(packet.__name__, largest))
            return
        if func.is_view or packet in (torch.ops.aten.detach, torch.ops.aten._unsafe_view) or not tensors:
            return
        self.num_operations += 1
        if packet is _GROUPED_PRODUCT:
            first, second = args[:2]
            stacked = first if first.ndim == 3 else second
            self.matmul_flops += 2.0 * (
                second.numel() * first.shape[-2] if stacked is first else first.numel() * second.shape[-1]
            )
            return
        if packet in flop_registry:
            self.matmul_flops += flop_registry[packet](*args, **kwargs, out_val=results)
            return
        self.moved_bytes += sum(
            tensor.nbytes for tensor in {id(tensor): tensor for tensor in (*given, *tensors)}.values()
        )


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation; of a grouped product of fake tensors also in types that CUDA does not know.

    Its rule for fake tensors is CUDA's, bf16 only (torch 2.14), while the CPU's kernel takes fp32 too.
    """
    if func._overloadpacket is not _GROUPED_PRODUCT or args[0].dtype == torch.bfloat16:  # noqa: SLF001  # the name
        return func(*args, **kwargs)
    if not isinstance(args[0], FakeTensor):
        return func(*args, **kwargs)
    narrow = [
        value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value for value in args
    ]
    return func(*narrow, **kwargs).to(args[0].dtype)


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
