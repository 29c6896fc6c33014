"""What ranks of a shared model send each other: weights in the type that is computed in, gradients in fp32."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.conftest import write_manifest
from tests.training.small_run import prepared
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.training.strategy import ShardedStrategy, Sharding

BF16, FP32 = torch.bfloat16, torch.float32
CPU = torch.device("cpu")


@pytest.fixture
def ranks():
    """This process as the first of two, whose exchanges move nothing."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    dist.destroy_process_group()


class Exchanged(TorchDispatchMode):
    """Types of what is gathered and of what is reduced."""

    def __init__(self):
        super().__init__()
        self.gathered, self.reduced = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kinds = {"c10d::_allgather_base_": self.gathered, "c10d::_reduce_scatter_base_": self.reduced}
        if (seen := kinds.get(func._schema.name)) is not None:
            seen.add(args[1].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("weights", "computed", "gathered"), [(FP32, BF16, BF16), (BF16, None, BF16), (FP32, None, FP32)],
    ids=["bf16-mixed", "bf16-true", "32-true"],
)  # fmt: skip
def test_gradients_are_reduced_in_fp32_and_weights_gathered_as_computed(
    ranks, tiny, cache, tmp_path, weights, computed, gathered
):
    data = prepared(write_manifest(tmp_path, 2), tiny.vision_language, cache, batch_size=2)
    sketch = WholeCheckpoint(path=tiny.vision_language, processor=None).sketch(dtype=weights)
    packed = PackedVLM(sketch.model, pixel_mean=data.processor.pixel_mean, pixel_std=data.processor.pixel_std)
    Sharding(mesh=ranks["data_parallel"], device=CPU, compute_dtype=computed).apply(packed, sketch.read)
    assert {parameter.dtype for parameter in packed.parameters()} == {weights}
    with Exchanged() as exchanged, torch.autocast("cpu", dtype=BF16, enabled=computed is not None):
        packed(data.pack_batch(0)).loss_sum.backward()
    assert exchanged.gathered == {gathered}
    assert exchanged.reduced == {FP32}


@pytest.mark.parametrize(
    ("precision", "computed"),
    [(MixedPrecision("bf16-mixed", "cpu"), BF16), (HalfPrecision("bf16-true"), None), (Precision(), None)],
    ids=["bf16-mixed", "bf16-true", "32-true"],
)
def test_only_mixed_precision_computes_in_another_type_than_its_weights(ranks, precision, computed, monkeypatch):
    strategy = ShardedStrategy(reduce_every_micro_batch=True, timeout_minutes=1.0)
    strategy._precision_plugin = precision
    strategy._device_mesh = ranks
    monkeypatch.setattr(ShardedStrategy, "root_device", CPU)
    assert strategy.sharding().compute_dtype == computed
    assert strategy.sharding().mesh.size() == 2
