"""An optimiser over fp32 copies of narrow weights.

AdamW moves a weight by about its learning rate. At 1e-5 that is less than half the spacing of bf16 numbers around any
weight above 2.6e-3: rounded to bf16 the update is lost, every time. So trained bf16 weights have a copy in fp32 (the
master) that the optimiser moves; its moments are in fp32 as well, and the weight is the master rounded. Frozen weights
have none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

NARROW = (torch.bfloat16, torch.float16)
_MASTER = "master"


class MasterOptimizer(Optimizer):
    """Looks like the optimiser it holds; steps on fp32 masters and rounds them into the parameters.

    Args:
        groups: Parameter groups of the narrow parameters.
        make: Makes the optimiser over the masters, given their groups.
        masters: Those of each group, where another optimiser has them already; None: made here.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        make: Callable[[list[dict[str, Any]]], Optimizer],
        *,
        masters: list[list[Tensor]] | None = None,
    ) -> None:
        masters = masters or [[p.detach().float() for p in group["params"]] for group in groups]
        own = [{**group, "params": params} for group, params in zip(groups, masters, strict=True)]
        self.inner = make(own)
        defaults = {key: value for key, value in self.inner.defaults.items()}
        super().__init__(groups, defaults)

    @property
    def masters(self) -> list[list[Tensor]]:
        """Of each group."""
        return [list(group["params"]) for group in self.inner.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Gradients to fp32, a step of the inner optimiser, masters rounded into the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        narrow, masters = self._pairs()
        for parameter, master in zip(narrow, masters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
        for mine, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({key: value for key, value in mine.items() if key != "params"})
        self.inner.step()
        with torch.no_grad():
            for parameter, master in zip(narrow, masters, strict=True):
                parameter.copy_(master)
                master.grad = None
                self.state[parameter] = {_MASTER: master, **self.inner.state[master]}
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As any optimiser's, with the master beside the moments of each parameter."""
        for parameter, master in zip(*self._pairs(), strict=True):
            self.state[parameter] = {_MASTER: master, **self.inner.state[master]}
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take masters and moments back in their own types; the base class would round them to the parameters'."""
        keys = [
            key for group in state_dict["param_groups"] for key in group["params"]
        ]  # numbers, or names from PyTorch
        for key, parameter, master in zip(keys, *self._pairs(), strict=True):
            entry = dict(state_dict["state"][key])
            with torch.no_grad():
                master.copy_(cast(Tensor, entry.pop(_MASTER)))
            self.inner.state[master] = {key: _beside(value, master) for key, value in entry.items()}
            self.state[parameter] = {_MASTER: master, **self.inner.state[master]}
        for mine, theirs in zip(self.param_groups, state_dict["param_groups"], strict=True):
            mine.update({key: value for key, value in theirs.items() if key != "params"})

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        return tuple(
            [p for group in groups for p in group["params"]] for groups in (self.param_groups, self.inner.param_groups)
        )  # type: ignore[return-value]


def _beside(value: Any, master: Tensor) -> Any:
    """A moment on the master's device; counts stay where they are."""
    return value.to(master.device) if isinstance(value, Tensor) and value.ndim == master.ndim and value.ndim else value
