"""Several optimisers that look like one: each moves its own, the state resumes bit for bit, over masters and shared too."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from tests.training import forked
from tests.training.conftest import lines, small, write_manifest
from tests.training.test_optim import plan
from vlmkit.training.masters import MasterOptimizer
from vlmkit.training.mixed import MixedOptimizer
from vlmkit.training.optim import make_optimizer, parameter_groups

SHAPES = {
    "model.visual.patch_embed.proj.weight": (4, 3),
    "model.visual.blocks.0.attn.qkv.weight": (4, 4),
    "model.visual.merger.linear_fc1.weight": (4, 4),
    "model.language_model.embed_tokens.weight": (6, 4),
    "model.language_model.layers.0.mlp.up_proj.weight": (5, 4),
    "model.language_model.layers.0.mlp.experts.up_proj": (2, 5, 4),
    "model.language_model.norm.weight": (4,),
    "lm_head.weight": (6, 4),
}
MUON = {"matrices": partial(Muon, momentum=0.9), "rest": partial(AdamW, betas=(0.8, 0.9))}


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()}


def gradients(parameters, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def trained(parameters, optimizer, steps):
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step % 3))
    for step in steps:
        gradients(parameters, step)
        optimizer.step()
        schedule.step()


def test_matrices_go_to_muon_and_what_is_none_to_adamw():
    groups = parameter_groups(parameters().items(), plan(optimizer=MUON))
    by_rule = {rule: {name for g in groups if g.rule == rule for name, _ in g.parameters} for rule in MUON}
    assert by_rule["matrices"] == {
        "model.visual.blocks.0.attn.qkv.weight",
        "model.visual.merger.linear_fc1.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
    }
    assert by_rule["rest"] == set(SHAPES) - by_rule["matrices"]
    assert [group.name for group in groups if group.part == "language_model"] == [
        "language_model/matrices",
        "language_model/rest",
        "language_model/rest/no_decay",
    ]


def test_the_first_rule_that_fits_counts_and_a_rate_of_its_own_keeps_the_ratios():
    optimizer = {"merger": partial(AdamW, lr=4.0, weight_decay=0.3), **MUON}
    groups = parameter_groups(
        parameters().items(), plan(lr=2.0, lr_vision_encoder=1.0, lr_merger=1.0, optimizer=optimizer)
    )
    found = {group.name: (group.lr, group.weight_decay) for group in groups}
    assert found["merger/merger"] == (2.0, 0.3)
    assert found["vision_encoder/matrices"] == (1.0, 0.1)
    assert found["language_model/rest/no_decay"] == (2.0, 0.0)


def test_each_moves_its_own_as_it_would_alone():
    settings = plan(lr=0.01, optimizer=MUON)
    mixed, alone = parameters(), parameters()
    groups = parameter_groups(mixed.items(), settings)
    optimizer = make_optimizer(groups, settings)
    assert isinstance(optimizer, MixedOptimizer)
    assert [group["name"] for group in optimizer.param_groups] == [group.name for group in groups]
    trained(mixed, optimizer, range(5))
    own = parameter_groups(alone.items(), settings)
    for rule, make in MUON.items():
        given = [
            {"params": [p for _, p in group.parameters], "lr": group.lr, "weight_decay": group.weight_decay}
            for group in own
            if group.rule == rule
        ]
        trained(alone, make(given), range(5))
    assert all(torch.equal(mixed[name], alone[name]) for name in SHAPES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_survives_a_checkpoint_bit_for_bit(dtype, tmp_path):
    settings = plan(lr=0.01, optimizer=MUON)

    def made(weights):
        optimizer = make_optimizer(parameter_groups(weights.items(), settings), settings)
        assert isinstance(optimizer, MasterOptimizer) == (dtype == torch.bfloat16)
        return optimizer

    whole, first = parameters(dtype), parameters(dtype)
    trained(whole, made(whole), range(6))
    optimizer = made(first)
    trained(first, optimizer, range(3))
    torch.save(
        {"weights": {name: p.detach() for name, p in first.items()}, "optimizer": optimizer.state_dict()},
        tmp_path / "c",
    )
    content = torch.load(tmp_path / "c", weights_only=True)
    second = {name: nn.Parameter(tensor) for name, tensor in content["weights"].items()}
    resumed = made(second)
    resumed.load_state_dict(content["optimizer"])
    for group in resumed.param_groups:
        group["lr"] = group["initial_lr"]  # the schedule repeats itself after three steps
    trained(second, resumed, range(3, 6))
    assert all(torch.equal(whole[name], second[name]) for name in SHAPES)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"matrix": AdamW, "rest": AdamW}, "optim.optimizer has no rule 'matrix'; choose of matrices, vision_encoder"),
        ({"matrices": AdamW}, "optim.optimizer must end with rest"),
        ({"rest": AdamW, "matrices": AdamW}, "optim.optimizer must end with rest"),
        ({"matrices": {"momentum": 0.9}, "rest": AdamW}, r"optim.optimizer.matrices must have a _target_"),
    ],
)
def test_rules_that_cannot_work_are_refused(optimizer, message):
    with pytest.raises(ValueError, match=message):
        plan(optimizer=optimizer)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with Muon and AdamW, and its manifest."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = write_manifest(folder, 12)
    settings = ["optim=muon", "optim.lr=1e-2", "callbacks.forecast=null", "save.every_n_steps=2", "save.keep=0"]
    forked.run(*small(manifest, folder / "run", *settings), output=folder / "out")
    return manifest, settings, folder / "run"


def test_a_run_resumes_bit_for_bit(whole, tmp_path):
    manifest, settings, run_dir = whole
    assert "language_model/matrices" in lines(run_dir)[0]["lr"]
    assert lines(run_dir)[-1]["loss"] < lines(run_dir)[0]["loss"]
    more = [f"resume_from={run_dir / 'checkpoints' / 'step-000002.ckpt'}"]
    forked.run(*small(manifest, tmp_path / "run", *settings, *more), output=tmp_path / "out")
    one, other = (load_file(place / "hf" / "model.safetensors") for place in (run_dir, tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_ranks_that_share_the_model_train_as_one_does(whole, tmp_path):
    manifest, settings, _ = whole
    forked.run(
        *small(manifest, tmp_path / "one", *settings, "trainer.accumulate_grad_batches=2"), output=tmp_path / "out"
    )
    forked.run_ranks("fsdp", *small(manifest, tmp_path / "two", *settings), output=tmp_path / "shared")
    one, two = ([line["loss"] for line in lines(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=2e-3)  # Muon multiplies in bf16
