"""Several optimisers that look like one: each moves its own parameter groups, such as Muon matrices and AdamW the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

RULE = "optimizer"
"""Key of a parameter group that names the optimiser which moves it."""
Make = Callable[[list[dict[str, Any]]], Optimizer]


class MixedOptimizer(Optimizer):
    """One optimiser for schedule, clipping and checkpoints; inside, an optimiser for each rule.

    Groups and state are shared with the optimisers inside: a learning rate that a schedule sets here counts there, and
    the state dict is that of a single optimiser over all groups, in their order.

    Args:
        groups: Parameter groups; each names its rule under `RULE`.
        makes: Makes the optimiser of each rule, given its groups.
    """

    def __init__(self, groups: list[dict[str, Any]], makes: Mapping[str, Make]) -> None:
        by_rule = {rule: [dict(group) for group in groups if group[RULE] == rule] for rule in makes}
        self.inner = {rule: makes[rule](own) for rule, own in by_rule.items() if own}
        rest = {rule: iter(optimizer.param_groups) for rule, optimizer in self.inner.items()}
        super().__init__([next(rest[group[RULE]]) for group in groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """A step of each optimiser inside."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.inner.values():
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take groups and state back, also in the optimisers inside."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        for rule, optimizer in self.inner.items():
            optimizer.param_groups = [group for group in self.param_groups if group[RULE] == rule]
            optimizer.state = self.state
