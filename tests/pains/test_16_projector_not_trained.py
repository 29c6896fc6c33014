"""A merger that takes no part in the loss, or a parameter nobody placed: told by name, before and in the first step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.conftest import write_manifest
from tests.training.small_run import fit, prepared
from tests.training.test_optim import plan
from vlmkit.model.freeze import FreezePolicy
from vlmkit.training.callbacks.receipt import GradientError, GradientReceipt
from vlmkit.training.module import TrainingModule
from vlmkit.training.optim import describe_groups, parameter_groups


class Detached(TrainingModule):
    """The merger's features are cut off the graph: training goes on, and the merger never learns."""

    def configure_model(self):
        self.freeze_policy = FreezePolicy(vision_encoder=True, merger=False, language_model=False)
        super().configure_model()
        self.packed.hf.model.visual.merger.register_forward_hook(lambda module, inputs, out: out.detach())


class Silenced(TrainingModule):
    """The merger's features weigh nothing: gradients are there, and exactly zero."""

    def configure_model(self):
        self.freeze_policy = FreezePolicy(vision_encoder=True, merger=False, language_model=False)
        super().configure_model()
        self.packed.hf.model.visual.merger.register_forward_hook(lambda module, inputs, out: out * 0.0)


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Detached,
            r"^model\.visual\.merger\.\S+ is trainable and got no gradient\. It takes no part in the loss: freeze it\.$",
        ),
        (
            Silenced,
            r"^6 trainable tensors had a gradient of exactly zero in 2 steps with media \(first: model\.visual\.merger\.",
        ),
    ],
)
def test_a_merger_that_does_not_learn_fails_the_run(tiny, cache, tmp_path, kind, message):
    data = prepared(write_manifest(tmp_path, 8), tiny.vision_language, cache)
    receipt = GradientReceipt(steps_with_media=2)
    with pytest.raises(GradientError, match=message):
        fit(data, tiny.vision_language, tmp_path, callbacks=[receipt], kind=kind)


def test_the_table_counts_every_tensor_once_and_an_unplaced_one_is_an_error():
    placed = {
        "model.visual.merger.a": nn.Parameter(torch.zeros(4, 3)),
        "model.visual.merger.b": nn.Parameter(torch.zeros(4)),
    }
    groups = parameter_groups(placed.items(), plan(lr_merger=0.5))
    rows = [line.split() for line in describe_groups(groups, {}).splitlines()[2:]]
    assert rows == [["merger", "1", "12", "0.5", "0.1"], ["merger/no_decay", "1", "4", "0.5", "0"]]
    names = [name for group in groups for name, _ in group.parameters]
    assert sorted(names) == sorted(placed)
    with pytest.raises(
        KeyError, match="parameter 'projector.weight' belongs to no known part; known prefixes: model.visual."
    ):
        parameter_groups([*placed.items(), ("projector.weight", nn.Parameter(torch.zeros(1)))], plan())
