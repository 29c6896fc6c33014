"""What a run would take on a machine that is not here: memory of the fullest rank, seconds of a step, and what bounds it.

Memory of tensors is simulated (`simulation.py`); the number of operations is counted there as well; their time follows
from the peaks of the machine by a roofline: every operation takes as long as its products or its memory traffic take,
whichever is the kind it is, and collectives overlap with them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from vlmkit.preflight.machine import Machine
from vlmkit.preflight.simulation import PackShape, StepSetting, StepSimulation, simulate_step
from vlmkit.preflight.tracking import KINDS
from vlmkit.training.forecast import told as format_seconds

Bound = Literal["matrix products", "attention", "memory traffic", "collectives", "host", "loading"]
_GIB = 2**30
_BUDGET_STEP = 64
"""Budgets of tokens are given in multiples of it."""
CONTEXT_BYTES = int(0.75 * _GIB)
"""CUDA context, libraries and cuBLAS workspace of a process: assumed."""
NCCL_BYTES = int(0.5 * _GIB)
"""Channels and buffers of NCCL, where there are several ranks: assumed."""
_FRAGMENTATION = 0.04
"""Share of what changes within a step that the allocator cannot use again: assumed."""
_ATTENTION_SHARE = 0.5
"""Speed of attention kernels by that of large products: assumed (FlashAttention reports 35 to 75 % of the peak)."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of the fullest rank.

    Attributes:
        tensors: At the fullest moment of the heaviest step, by kind: simulated.
        workspace: Of attention kernels in their backward pass, the largest at once: assumed.
        framework: Context, libraries, communication, fragmentation: assumed.
        capacity: Of the GPU.
    """

    tensors: dict[str, int]
    workspace: int
    framework: int
    capacity: int

    @property
    def total(self) -> int:
        """Of all kinds together."""
        return sum(self.tensors.values()) + self.workspace + self.framework

    @property
    def fits(self) -> bool:
        """Whether the GPU holds it."""
        return self.total <= self.capacity


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A run on a machine.

    Attributes:
        request: As asked for, `8xh100`.
        machine: For people.
        strategy: What ranks share, and what is recomputed.
        num_ranks: GPUs.
        memory: Of the fullest rank.
        seconds_by_bound: Of a micro-batch, each kind of work alone.
        step_seconds: Of an optimiser step of average packs.
        run_seconds: Of the steps of the run; None: their number is not known.
        tokens_per_second: Of all ranks together.
        mfu: Model FLOPs by the machine's peak; without what is recomputed.
        bound: What the step waits for.
        largest_tokens_per_batch: Of `data.tokens_per_batch` that fits; None: not even small packs do.
    """

    request: str
    machine: str
    strategy: str
    num_ranks: int
    memory: Memory
    seconds_by_bound: dict[str, float]
    step_seconds: float
    run_seconds: float | None
    tokens_per_second: float
    mfu: float
    bound: Bound
    largest_tokens_per_batch: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"memory": asdict(self.memory) | {"total": self.memory.total, "fits": self.memory.fits}}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the run is made of, beside the setting of a step.

    Attributes:
        heaviest: The pack that takes the most memory.
        average: A pack of the run's mean size.
        num_packs: Of the run; None: not known.
        load_seconds: To read and decode an average pack in one process; None: not measured.
        num_workers: Processes that load for a rank.
    """

    heaviest: PackShape
    average: PackShape
    num_packs: int | None
    load_seconds: float | None
    num_workers: int


class Estimator:
    """Estimates one run on many machines; what does not depend on the machine is simulated once.

    Args:
        work: What the run is made of.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self._simulations: dict[Hashable, StepSimulation] = {}

    def estimate(self, setting: StepSetting, machine: Machine, request: str) -> Estimate:
        """Estimate the run on a machine; a few seconds for a model of 2B parameters.

        Args:
            setting: With as many ranks as the machine is asked for.
            machine: Where.
            request: As the user wrote it.
        """
        heavy = self._simulate(setting, self.work.heaviest)
        average = self._simulate(setting, self.work.average)
        memory = memory_of(heavy, setting, self.work.heaviest, machine)
        seconds = micro_batch_seconds(average, setting, machine, self.work)
        micro_batch, bound = slowest(seconds)
        step = setting.accumulate * micro_batch + _traffic_seconds(average.update.moved_bytes, machine)
        num_tokens = sum(sample.num_tokens for sample in self.work.average)
        packs_per_step = setting.accumulate * setting.num_ranks
        return Estimate(
            request=request,
            machine=machine.name,
            strategy=describe_strategy(setting),
            num_ranks=setting.num_ranks,
            memory=memory,
            seconds_by_bound=seconds,
            step_seconds=step,
            run_seconds=None if self.work.num_packs is None else -(-self.work.num_packs // packs_per_step) * step,
            tokens_per_second=packs_per_step * num_tokens / step,
            mfu=setting.accumulate * average.model_flops / (step * _peak_flops(machine, setting)),
            bound=bound,
            largest_tokens_per_batch=self._largest_budget(setting, memory, machine),
        )

    def _largest_budget(self, setting: StepSetting, memory: Memory, machine: Machine) -> int | None:
        """The largest `data.tokens_per_batch` that fits, with the heaviest pack's mix of text and images; None: none does.

        Memory grows in proportion to the pack once activations decide the peak, so two packs give the line.
        """
        shape = self.work.heaviest
        double = memory_of(self._simulate(setting, shape * 2), setting, shape * 2, machine).total
        slope = double - memory.total
        if slope <= 0:
            return None
        packs = 1 + (machine.memory_bytes - memory.total) / slope
        num_tokens = int(packs * sum(sample.num_tokens for sample in shape)) // _BUDGET_STEP * _BUDGET_STEP
        return num_tokens if num_tokens > 0 else None

    def _simulate(self, setting: StepSetting, shape: PackShape) -> StepSimulation:
        shares = (setting.strategy, setting.num_ranks if setting.strategy == "fsdp" else setting.num_ranks > 1)
        key = (shares, setting.recompute_language_model, setting.recompute_vision_encoder, shape)
        if key not in self._simulations:
            self._simulations[key] = simulate_step(setting, shape)
        return self._simulations[key]


def memory_of(simulation: StepSimulation, setting: StepSetting, shape: PackShape, machine: Machine) -> Memory:
    """Memory of a rank: the simulated tensors, and what is assumed beside them."""
    changing = simulation.peak_bytes - sum(simulation.resting.values())
    framework = CONTEXT_BYTES + (NCCL_BYTES if setting.num_ranks > 1 else 0) + int(_FRAGMENTATION * changing)
    return Memory(
        tensors={kind: simulation.peak[kind] for kind in KINDS if simulation.peak.get(kind)},
        workspace=attention_workspace(setting, shape),
        framework=framework,
        capacity=machine.memory_bytes,
    )


def attention_workspace(setting: StepSetting, shape: PackShape) -> int:
    """Bytes of the fp32 sum of query gradients that FlashAttention 2 keeps in a backward pass; of the larger part."""
    text: Any = setting.config.get_text_config()
    vision: Any = getattr(setting.config, "vision_config")  # noqa: B009  # typed by no common base
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    of_text = sum(sample.num_tokens for sample in shape) * text.num_attention_heads * head_size
    of_vision = sum(sample.num_patches for sample in shape) * vision.hidden_size
    return 4 * max(of_text, 0 if setting.freeze.vision_encoder else of_vision)


def micro_batch_seconds(
    simulation: StepSimulation, setting: StepSetting, machine: Machine, work: Work
) -> dict[str, float]:
    """Seconds of a micro-batch, each kind of work alone."""
    narrow = setting.precision.startswith(("bf16", "16"))
    products = machine.products_per_second(narrow=narrow)
    ring = (setting.num_ranks - 1) / setting.num_ranks
    exchanged = ring * sum(each.num_bytes for each in simulation.traffic.collectives)
    if setting.strategy == "ddp":
        exchanged = 2 * ring * simulation.trained_bytes / setting.accumulate  # an all-reduce, once a step
    return {
        "matrix products": simulation.traffic.matmul_flops / products,
        "attention": simulation.attention_flops / (products * _ATTENTION_SHARE),
        "memory traffic": _traffic_seconds(simulation.traffic.moved_bytes, machine),
        "collectives": exchanged / machine.exchange_per_second(setting.num_ranks),
        "host": simulation.traffic.num_operations * machine.launch_microseconds * 1e-6,
        "loading": (work.load_seconds or 0.0) / max(1, work.num_workers),
    }


def slowest(seconds: dict[str, float]) -> tuple[float, Bound]:
    """Seconds that pass, and what they are spent on.

    Products, attention and memory traffic follow each other on the device; collectives, the host and the loaders work
    beside it, so the longest of them all decides.
    """
    on_device: tuple[Bound, ...] = ("matrix products", "attention", "memory traffic")
    beside: tuple[Bound, ...] = ("collectives", "host", "loading")
    device = sum(seconds[kind] for kind in on_device)
    longest = max(beside, key=lambda kind: seconds[kind])
    if seconds[longest] > device:
        return seconds[longest], longest
    return device, max(on_device, key=lambda kind: seconds[kind])


def alternatives(setting: StepSetting) -> list[StepSetting]:
    """The setting itself, and the strategies that a user may choose instead on as many GPUs."""
    strategies = ("single",) if setting.num_ranks == 1 else ("ddp", "fsdp")
    others = [
        replace(setting, strategy=strategy, recompute_language_model=recompute)
        for strategy in strategies
        for recompute in (False, True)
    ]
    return [setting, *(other for other in others if other != setting)]


def describe_strategy(setting: StepSetting) -> str:
    """`fsdp, language model recomputed`."""
    recomputed = [
        name
        for name, active in (
            ("vision encoder", setting.recompute_vision_encoder),
            ("language model", setting.recompute_language_model),
        )
        if active
    ]
    return ", ".join([setting.strategy, *([f"{' and '.join(recomputed)} recomputed"] if recomputed else [])])


def estimates_table(estimates: Sequence[Estimate]) -> list[str]:
    """Lines of a table for people: a row for each estimate."""
    head = ("machine", "strategy", "GiB", "of", "fits", "step", "tokens/s", "MFU", "run", "bound by", "largest budget")
    rows = [head, *(_cells(estimate) for estimate in estimates)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, 1, 9) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _cells(estimate: Estimate) -> tuple[str, ...]:
    memory, budget = estimate.memory, estimate.largest_tokens_per_batch
    return (
        estimate.request,
        estimate.strategy,
        f"{memory.total / _GIB:.1f}",
        f"{memory.capacity / _GIB:.1f}",
        "yes" if memory.fits else "no",
        format_seconds(estimate.step_seconds),
        f"{estimate.tokens_per_second:,.0f}",
        f"{estimate.mfu:.0%}",
        "-" if estimate.run_seconds is None else format_seconds(estimate.run_seconds),
        estimate.bound,
        "none" if budget is None else f"{budget:,}",
    )


def _traffic_seconds(num_bytes: float, machine: Machine) -> float:
    return num_bytes / (machine.bandwidth_gb * 1e9 * machine.bandwidth_share)


def _peak_flops(machine: Machine, setting: StepSetting) -> float:
    narrow = setting.precision.startswith(("bf16", "16"))
    return machine.products_per_second(narrow=narrow) / machine.product_share
