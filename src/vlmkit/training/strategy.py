"""Fully sharded training (FSDP2): which blocks are wrapped, and what a rank keeps of a model.

Each block of the vision encoder and of the language model is a unit of its own; what stands between them (embeddings,
mergers, norms, head) belongs to the root, which is `PackedVLM`: its forward is the one place where all of it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vlmkit.model.packed import PackedVLM
from vlmkit.model.parts import blocks_of, restore_rotary_buffers
from vlmkit.training.shards import load_shards, save_shards, shard_rows, trained_parameters


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a model is spread over ranks.

    Attributes:
        mesh: One dimension: the ranks that share it.
        device: Of this rank.
        compute_dtype: Type that parameters have while they are whole; None: their own. Gradients are reduced in fp32
            where this, or the parameters' own type, is narrower.
    """

    mesh: DeviceMesh
    device: torch.device
    compute_dtype: torch.dtype | None

    def apply(self, packed: PackedVLM, read: Callable[[str, int, int], Tensor]) -> None:
        """Wrap a model that stands on the meta device and fill what this rank keeps of it.

        Args:
            packed: Frozen as it will be trained; tied; nothing of it has memory.
            read: Name of a parameter of `packed.hf`, its first row and the row after the last, to these rows.
        """
        dtype = next(packed.parameters()).dtype
        narrow = (self.compute_dtype or dtype) in (torch.bfloat16, torch.float16)
        policy = MixedPrecisionPolicy(
            param_dtype=self.compute_dtype,
            reduce_dtype=torch.float32 if narrow else None,
            cast_forward_inputs=False,  # autocast, or our own forward, casts: pixels are normalised in fp32 first
        )
        blocks = [*blocks_of(packed.hf, "vision_encoder"), *blocks_of(packed.hf, "language_model")]
        for block in blocks:
            fully_shard(block, mesh=self.mesh, mp_policy=policy)
        fully_shard(packed, mesh=self.mesh, mp_policy=policy)
        packed.to_empty(device=self.device)
        rank, num_ranks = self.mesh.get_local_rank(), self.mesh.size()
        with torch.no_grad():
            for name, parameter in packed.hf.named_parameters():
                assert isinstance(parameter, DTensor)
                first, last = shard_rows(len(parameter), rank=rank, num_ranks=num_ranks)
                parameter.to_local().copy_(read(name, first, last))
        restore_rotary_buffers(packed.hf)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 over all ranks, with checkpoints of what is trained only, resumable on any number of ranks.

    Args:
        reduce_every_micro_batch: Reduce gradients after each micro-batch, so that a rank holds its shard of them only.
            False reduces once a step: less traffic where steps have several micro-batches, for the memory of whole
            gradients.
        timeout_minutes: How long a rank waits for the others before it gives up.
    """

    def __init__(self, *, reduce_every_micro_batch: bool, timeout_minutes: float) -> None:
        super().__init__(tensor_parallel_size=1, timeout=timedelta(minutes=timeout_minutes))
        self.reduce_every_micro_batch = reduce_every_micro_batch

    def setup_environment(self) -> None:
        """All ranks share the parameters; Lightning's `auto` would mean the number of nodes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def sharding(self) -> Sharding:
        """For the module's `configure_model`, once processes have found each other."""
        mixed = str(self.precision_plugin.precision).startswith("bf16-mixed")
        return Sharding(
            mesh=self.device_mesh["data_parallel"],
            device=self.root_device,
            compute_dtype=torch.bfloat16 if mixed else None,
        )

    @contextmanager
    def block_backward_sync(self) -> Generator[None]:
        """Around every micro-batch of a step but the last."""
        units = [] if self.reduce_every_micro_batch else list(_units(self.lightning_module))
        for unit in units:
            unit.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for unit in units:
                unit.set_requires_gradient_sync(True, recurse=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained, as this rank's shards."""
        return dict(trained_parameters(cast(nn.Module, self.lightning_module)))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Nothing yet: `save_checkpoint` takes it from the optimiser, shard by shard."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a directory: each rank its shards, rank 0 the rest. Whole only once it is renamed by the caller."""
        path = Path(self.broadcast(filepath))
        kept = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        save_shards(path, module=self._module, optimizers=self.optimizers, rest=kept)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read this rank's part of each tensor, whatever number of ranks wrote them."""
        path = Path(self.broadcast(checkpoint_path))
        return load_shards(path, module=self._module, optimizers=self.optimizers)

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module


class FirstOfRanks(ShardedStrategy):
    """One process in the place of the first of several ranks that share a model: it keeps what that rank would keep.

    Exchanges move nothing, so what is computed means nothing; memory and time, apart from the exchange, are those of a rank.

    Args:
        num_ranks: How many ranks there would be.
        reduce_every_micro_batch: As `ShardedStrategy` takes it.
        timeout_minutes: The same.
    """

    def __init__(self, *, num_ranks: int, reduce_every_micro_batch: bool, timeout_minutes: float) -> None:
        super().__init__(reduce_every_micro_batch=reduce_every_micro_batch, timeout_minutes=timeout_minutes)
        self.num_ranks = num_ranks

    @property
    def num_processes(self) -> int:
        """Ranks that there would be, as if all of them were on this machine."""
        return self.num_ranks

    @property
    def world_size(self) -> int:
        """The same, whatever a launcher says."""
        return self.num_ranks

    @property
    def global_rank(self) -> int:
        """Always the first: its shards are the largest."""
        return 0

    def setup_environment(self) -> None:
        """Begin a process group whose exchanges hand each rank what it has itself."""
        # PyTorch's own way to try a program of many ranks in one process; it lies among torch's test helpers.
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group("fake", rank=0, world_size=self.num_ranks, store=FakeStore())
        super().setup_environment()

    def teardown(self) -> None:
        """End the group."""
        super().teardown()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _configure_launcher(self) -> None:
        self._launcher = None  # no other process is started, and no variable of the environment set


def _units(module: nn.Module | None) -> Iterator[FSDPModule]:
    assert module is not None
    return (unit for unit in module.modules() if isinstance(unit, FSDPModule))
