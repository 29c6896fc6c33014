"""A machine that a run could be rented: memory and speeds of its GPUs from data sheets, and what is assumed beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlmkit.errors import ConfigError

_REQUEST = re.compile(r"(?P<number>[1-9]\d*)x(?P<name>.+)")
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """GPUs of one kind, and how they are connected.

    Attributes:
        name: For people.
        memory_gib: Of a GPU, as its driver reports it.
        bf16_tflops: Peak of dense bf16 products with fp32 accumulation, in 1e12 FLOPs a second.
        tf32_tflops: The same of fp32 products in TF32.
        bandwidth_gb: Of a GPU's memory, in 1e9 bytes a second.
        link_gb: From a GPU to the others of its machine, one direction, in 1e9 bytes a second.
        network_gb: Between machines, for each GPU.
        gpus: GPUs of a machine.
        capability: CUDA compute capability; None: no CUDA device.
        product_share, bandwidth_share, link_share: What of the peaks is reached: assumed, from what public benchmarks
            report of large products, of elementwise kernels and of NCCL on these machines.
        launch_microseconds: What the host needs to start a kernel: assumed.
    """

    name: str
    memory_gib: float
    bf16_tflops: float
    tf32_tflops: float
    bandwidth_gb: float
    link_gb: float
    network_gb: float
    gpus: int
    capability: Sequence[int] | None
    product_share: float = 0.65
    bandwidth_share: float = 0.75
    link_share: float = 0.75
    launch_microseconds: float = 6.0

    def __post_init__(self) -> None:
        for name in ("memory_gib", "bf16_tflops", "tf32_tflops", "bandwidth_gb", "link_gb", "network_gb", "gpus"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"machine.{name} must be positive, got {value}")
        for name in ("product_share", "bandwidth_share", "link_share"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ValueError(f"machine.{name} must be above 0 and at most 1, got {value}")

    @property
    def memory_bytes(self) -> int:
        """Of a GPU."""
        return int(self.memory_gib * _GIB)

    def products_per_second(self, *, narrow: bool) -> float:
        """FLOPs a second of matrix products: in bf16, or in fp32 by TF32."""
        return (self.bf16_tflops if narrow else self.tf32_tflops) * 1e12 * self.product_share

    def exchange_per_second(self, num_ranks: int) -> float:
        """Bytes a second that a rank sends in a ring over so many ranks: of the slowest link on the way."""
        link = self.link_gb if num_ranks <= self.gpus else min(self.link_gb, self.network_gb)
        return link * 1e9 * self.link_share


@dataclass(frozen=True)
class Request:
    """An entry of `check.on`: so many GPUs of a machine.

    Attributes:
        num_gpus: All together; more than one machine has means several machines.
        machine: Name of a choice of the group `machine`, or path of a yaml file.
    """

    num_gpus: int
    machine: str

    def __str__(self) -> str:
        return f"{self.num_gpus}x{self.machine}"


def parse_requests(value: object) -> list[Request]:
    """`check.on` as a list of requests.

    Args:
        value: `8xh100`, or a list of such; None: no request.

    Raises:
        ConfigError: naming the entry that is no number of GPUs and name.
    """
    entries: Sequence[object] = [] if value is None else [value] if isinstance(value, str) else list(value)  # pyright: ignore[reportArgumentType]  # anything else is refused below
    requests: list[Request] = []
    for entry in entries:
        match = _REQUEST.fullmatch(str(entry))
        if match is None:
            raise ConfigError(
                f"check.on={entry}: expected a number of GPUs and a machine. Give 8xh100, 1xrtx4090 or 2xmy_machine.yaml, for example."
            )
        requests.append(Request(int(match["number"]), match["name"]))
    return requests
