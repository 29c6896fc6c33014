"""Groups, rates and the schedule."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from vlmkit.errors import ConfigError
from vlmkit.training.optim import (
    OptimizerPlan,
    apply_settings,
    describe_groups,
    lr_factor,
    make_optimizer,
    make_schedule,
    parameter_groups,
)

NAMES = ["model.visual.blocks.0.w", "model.visual.merger.w", "model.language_model.norm.w", "lm_head.weight"]


def plan(**changes):
    settings = dict(
        lr=1.0, lr_vision_encoder=None, lr_merger=None, lr_language_model=None, layer_decay=1.0, weight_decay=0.1, beta1=0.9, beta2=0.99,
        eps=1e-8, fp32_masters=True, optimizer=None, schedule="cosine", warmup_ratio=0.1, min_lr_ratio=0.0,
    )  # fmt: skip
    return OptimizerPlan(**settings | changes)


def parameters(frozen=()):
    made = {name: nn.Parameter(torch.zeros(3, 2) if "norm" not in name else torch.zeros(3)) for name in NAMES}
    for name in frozen:
        made[name].requires_grad_(False)
    return made.items()


def test_every_trainable_parameter_is_in_one_group_with_its_rate_and_decay():
    groups = parameter_groups(parameters(frozen=[NAMES[0]]), plan(lr_merger=0.5))
    told = {group.name: ([name for name, _ in group.parameters], group.lr, group.weight_decay) for group in groups}
    assert told == {
        "merger": ([NAMES[1]], 0.5, 0.1),
        "language_model": ([NAMES[3]], 1.0, 0.1),
        "language_model/no_decay": ([NAMES[2]], 1.0, 0.0),
    }
    assert [group["lr"] for group in make_optimizer(groups, plan()).param_groups] == [0.5, 1.0, 1.0]


def test_a_parameter_of_no_part_is_an_error():
    with pytest.raises(KeyError, match="'adapter.w' belongs to no known part"):
        parameter_groups([("adapter.w", nn.Parameter(torch.zeros(1)))], plan())


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match="nothing to train"):
        parameter_groups(parameters(frozen=NAMES), plan())


@pytest.mark.parametrize(
    ("schedule", "end"),
    [("cosine", pytest.approx(0.0, abs=1e-3)), ("linear", pytest.approx(0.0111, abs=1e-3)), ("constant", 1.0)],
)
def test_the_schedule_rises_and_then_falls(schedule, end):
    factor = lr_factor(plan(schedule=schedule), num_steps=100)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(10) == 1.0
    assert factor(99) == end
    assert all(factor(step + 1) <= factor(step) for step in range(10, 99))


def test_min_lr_ratio_is_what_is_left():
    assert lr_factor(plan(min_lr_ratio=0.2), num_steps=10)(10) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"lr": -1}, "optim.lr"), ({"warmup_ratio": 2}, "0..1"), ({"schedule": "step"}, "cosine, linear")],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_layers_below_learn_more_slowly():
    names = ["visual.pos_embed.weight", "visual.blocks.0.w", "visual.blocks.1.w", "visual.merger.w"]
    names += ["language_model.embed_tokens.weight", "language_model.layers.0.w", "language_model.norm.w"]
    made = [(f"model.{name}", nn.Parameter(torch.zeros(2, 2))) for name in names]
    rates = {g.name: g.lr for g in parameter_groups(made, plan(layer_decay=0.5))}
    assert rates == {
        "vision_encoder/layer_02": 1.0,
        "vision_encoder/layer_01": 0.5,
        "vision_encoder/layer_00": 0.25,
        "merger": 1.0,
        "language_model/layer_02": 1.0,
        "language_model/layer_01": 0.5,
        "language_model/layer_00": 0.25,
    }
    with pytest.raises(ValueError, match=r"optim.layer_decay must lie above 0"):
        plan(layer_decay=0.0)


def test_another_optimiser_gets_the_groups():
    groups = parameter_groups(parameters(), plan())
    made = make_optimizer(groups, plan(optimizer=partial(torch.optim.SGD, momentum=0.9)))
    assert isinstance(made, torch.optim.SGD)
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in made.param_groups][0] == (1.0, 0.1, 0.9)


def test_the_table_names_groups_and_what_is_frozen():
    table = describe_groups(parameter_groups(parameters(frozen=[NAMES[0]]), plan()), {"vision_encoder": (1, 6)})
    assert "merger" in table
    assert "vision_encoder (frozen)" in table
    assert table.splitlines()[2].split() == ["merger", "1", "6", "1", "0.1"]


@pytest.mark.parametrize("steps", [1, 30])
def test_applied_settings_go_on_in_the_schedule(steps):
    """A resumed run with another rate: from the next step on it is that of a run which had it all the time."""

    def made(**changes):
        settings = plan(**changes)
        weight = nn.Parameter(torch.ones(3, 2))
        groups = parameter_groups([("model.visual.merger.w", weight)], settings)
        optimizer = make_optimizer(groups, settings)
        return weight, optimizer, make_schedule(optimizer, settings, num_steps=100)

    def advance(weight, optimizer, schedule, count):
        for _ in range(count):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            schedule.step()

    weight, optimizer, schedule = made(lr=1.0)
    advance(weight, optimizer, schedule, steps)
    always = made(lr=0.25, beta2=0.5, weight_decay=0.0)
    planned = [{key: value for key, value in g.items() if key != "params"} for g in always[1].param_groups]
    advance(*always, steps)
    moments = optimizer.state[weight]["exp_avg"].clone()
    apply_settings(optimizer, schedule, planned)
    for key in ("lr", "initial_lr", "betas", "weight_decay"):
        assert optimizer.param_groups[0][key] == pytest.approx(always[1].param_groups[0][key]), key
    assert torch.equal(optimizer.state[weight]["exp_avg"], moments)
    advance(weight, optimizer, schedule, 5)
    advance(*always, 5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(always[1].param_groups[0]["lr"])
