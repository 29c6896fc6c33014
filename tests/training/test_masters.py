"""Narrow weights learn through fp32 copies as fp32 weights would, and their state survives a checkpoint exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from vlmkit.training.masters import MasterOptimizer


def adamw(groups):
    return AdamW(groups, lr=1e-5, betas=(0.9, 0.95))


def trained(make, num_steps: int, weight: nn.Parameter, optimizer=None):
    """Steps towards larger weights, under a schedule; every gradient is a bf16 number."""
    optimizer = optimizer or make([{"params": [weight], "lr": 1e-5}])
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step % 3))
    for step in range(num_steps):
        weight.grad = torch.full_like(weight, -1.0 - step % 2)
        optimizer.step()
        schedule.step()
    return optimizer


def start(dtype):
    return nn.Parameter(torch.linspace(0.5, 1.5, 7).bfloat16().to(dtype))


def over_masters(groups):
    return MasterOptimizer(groups, adamw)


def test_updates_too_small_for_bf16_are_kept():
    naive, mastered, exact = start(torch.bfloat16), start(torch.bfloat16), start(torch.float32)
    before = naive.clone()
    trained(adamw, 400, naive)
    optimizer = trained(over_masters, 400, mastered)
    trained(adamw, 400, exact)
    assert torch.equal(naive, before), "in bf16 every update is lost"
    assert torch.equal(optimizer.state[mastered]["master"], exact)
    assert torch.equal(mastered, exact.bfloat16())
    assert not torch.equal(mastered, before)


@pytest.mark.parametrize("inner", [adamw, lambda groups: SGD(groups, lr=1e-5, momentum=0.9)])
def test_the_state_survives_a_checkpoint_bit_for_bit(inner, tmp_path):
    weight, copy = start(torch.bfloat16), start(torch.bfloat16)
    first = trained(lambda groups: MasterOptimizer(groups, inner), 5, weight)
    torch.save({"weight": weight.detach(), "optimizer": first.state_dict()}, tmp_path / "x")
    kept = torch.load(tmp_path / "x", weights_only=True)
    copy.data.copy_(kept["weight"])
    second = MasterOptimizer([{"params": [copy], "lr": 1e-5}], inner)
    second.load_state_dict(kept["optimizer"])
    assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"]
    for optimizer, parameter in ((first, weight), (second, copy)):
        trained(None, 5, parameter, optimizer)
    assert torch.equal(first.state[weight]["master"], second.state[copy]["master"])


def test_a_state_by_the_names_of_parameters_is_taken_back():
    """PyTorch's sharded checkpoints name parameters where an optimiser counts them; the order is that of the groups."""
    names = ["z.weight", "a.weight", "m.weight"]
    weights = [nn.Parameter(torch.full((3,), value, dtype=torch.bfloat16)) for value in (1.0, 2.0, 3.0)]
    groups = [{"params": weights[:1], "lr": 1e-5}, {"params": weights[1:], "lr": 1e-4}]
    first = MasterOptimizer(groups, adamw)
    for number, weight in enumerate(weights):
        weight.grad = torch.full_like(weight, 1.0 + number)
    first.step()
    state = first.state_dict()
    named = {
        "state": {names[number]: entry for number, entry in reversed(state["state"].items())},
        "param_groups": [{**group, "params": [names[n] for n in group["params"]]} for group in state["param_groups"]],
    }
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    groups = [{"params": copies[:1], "lr": 0.5}, {"params": copies[1:], "lr": 0.5}]
    second = MasterOptimizer(groups, adamw)
    second.load_state_dict(named)
    assert [group["lr"] for group in second.param_groups] == [1e-5, 1e-4]
    for weight, copy in zip(weights, copies, strict=True):
        assert first.state[weight].keys() == second.state[copy].keys() == {"master", "step", "exp_avg", "exp_avg_sq"}
        for name, value in first.state[weight].items():
            assert torch.equal(second.state[copy][name], value), name
