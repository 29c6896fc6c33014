"""Bytes of a run are those that the real optimiser, masters, shards and checkpoints take."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.fit import without_weights
from vlmkit.model.freeze import FreezePolicy
from vlmkit.model.lora import Lora, is_adapter
from vlmkit.model.parts import blocks_of
from vlmkit.training.footprint import count_footprint
from vlmkit.training.forecast import Ranks
from vlmkit.training.optim import OptimizerPlan, make_optimizer, parameter_groups

BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64
ONE = Ranks(number=1, measured=1, sharing="nothing")
MERGER_FROZEN = FreezePolicy(vision_encoder=False, merger=True, language_model=False)


def plan(**changes) -> OptimizerPlan:
    settings = {
        "lr": 1e-3, "lr_vision_encoder": None, "lr_merger": None, "lr_language_model": None, "weight_decay": 0.1,
        "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "schedule": "constant", "warmup_ratio": 0.0, "min_lr_ratio": 0.0,
        "layer_decay": 1.0, "fp32_masters": True, "optimizer": None,
    }  # fmt: skip
    return OptimizerPlan(**settings | changes)


@pytest.fixture
def hf(tiny):
    model = without_weights(WholeCheckpoint(path=tiny.vision_language, processor=None).config())
    MERGER_FROZEN.apply(model)
    return model


def counted(hf, optim=None, *, dtype=FP32, compute_dtype=None, ranks=ONE, averaged=False, whole_gradients=False):
    return count_footprint(
        hf, optim or plan(), dtype=dtype, compute_dtype=compute_dtype or dtype, ranks=ranks, averaged=averaged,
        whole_gradients=whole_gradients,
    )  # fmt: skip


def numbers(hf):
    total = sum(parameter.numel() for parameter in hf.parameters())
    return total, sum(parameter.numel() for parameter in hf.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("dtype", "optim", "per_trained"),
    [
        (FP32, {}, (16, 16, 12)),
        (BF16, {}, (16, 20, 14)),  # weight, gradient, master, two moments; then fp32 gradients; a checkpoint has none
        (BF16, {"fp32_masters": False}, (8, 8, 6)),
        (FP64, {}, (32, 32, 24)),
        (FP32, {"optimizer": lambda groups: SGD(groups, lr=0.1)}, (8, 8, 4)),
        (FP32, {"optimizer": lambda groups: SGD(groups, lr=0.1, momentum=0.9)}, (12, 12, 8)),
    ],
    ids=["fp32", "bf16", "bf16 without masters", "fp64", "SGD", "SGD with momentum"],
)
def test_bytes_of_a_trained_parameter(hf, dtype, optim, per_trained):
    total, trained = numbers(hf)
    found = counted(hf, plan(**optim), dtype=dtype)
    backward, update, checkpoint = per_trained
    frozen = (total - trained) * dtype.itemsize
    assert found.per_trained == pytest.approx(per_trained)
    assert (found.backward, found.update) == (frozen + backward * trained, frozen + update * trained)
    assert found.resting == frozen + (backward - dtype.itemsize) * trained
    assert found.checkpoint == checkpoint * trained
    assert found.export == total * dtype.itemsize
    assert found.gathered == 0


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_the_count_is_what_a_real_step_of_the_real_optimiser_leaves(tiny, dtype):
    model = WholeCheckpoint(path=tiny.vision_language, processor=None).build(dtype=dtype).model
    MERGER_FROZEN.apply(model)
    optimizer = make_optimizer(parameter_groups(model.named_parameters(), plan()), plan())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor) and t.ndim]
    found = counted(model, dtype=dtype)
    assert found.resting == sum(t.nbytes for t in (*model.parameters(), *kept))
    assert found.checkpoint == sum(t.nbytes for t in (*trained, *kept))


def test_an_average_is_in_fp32_and_in_every_checkpoint(hf):
    _, trained = numbers(hf)
    without, with_average = counted(hf, dtype=BF16), counted(hf, dtype=BF16, averaged=True)
    assert with_average.resting - without.resting == 4 * trained
    assert with_average.checkpoint - without.checkpoint == 4 * trained


def test_ddp_holds_all_and_the_gradients_twice_fsdp_a_share(hf):
    total, trained = numbers(hf)
    alone = counted(hf, dtype=BF16)
    ddp = counted(hf, dtype=BF16, ranks=Ranks(number=4, measured=1, sharing="gradients"))
    assert (ddp.resting, ddp.update) == (alone.resting, alone.update + 2 * trained)
    shared = Ranks(number=4, measured=1, sharing="model")
    fsdp = counted(hf, dtype=BF16, ranks=shared)
    assert fsdp.resting == alone.resting // 4
    assert fsdp.update == pytest.approx(alone.update / 4, abs=8)
    assert fsdp.checkpoint == alone.checkpoint, "the ranks write their parts of one"
    whole = counted(hf, dtype=BF16, ranks=shared, whole_gradients=True)
    assert whole.update - fsdp.update == pytest.approx(4 * trained - 2 * trained / 4, abs=8)
    blocks = [*blocks_of(hf, "vision_encoder"), *blocks_of(hf, "language_model")]
    sizes = sorted(sum(parameter.numel() for parameter in block.parameters()) for block in blocks)
    assert fsdp.gathered == 2 * (total - sum(sizes) + sum(sizes[-2:]))
    mixed = counted(hf, dtype=FP32, compute_dtype=BF16, ranks=shared)
    assert mixed.gathered == fsdp.gathered


def test_only_adapters_count_as_trained(hf):
    pytest.importorskip("peft", reason="adapters need PEFT: pip install 'vlmkit[lora]'")
    adapters = Lora(
        rank=4, alpha=8, dropout=0.0, vision_encoder=["qkv"], merger=[], language_model=["q_proj", "down_proj"]
    )
    before, _ = numbers(hf)
    adapters.inject(hf)
    adapters.choose(hf, FreezePolicy(vision_encoder=True, merger=True, language_model=False))
    small = sum(parameter.numel() for name, parameter in hf.named_parameters() if is_adapter(name))
    found = counted(hf, dtype=BF16)
    assert found.checkpoint == 14 * small
    assert found.update == 2 * before + 20 * small
