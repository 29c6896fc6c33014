"""Peaks of GPUs as their data sheets state them: dense (half of what is stated with sparsity), at the board's own power."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_warn


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a GPU can compute in a second, in 10^12 FLOPs.

    Attributes:
        name: Pattern of the whole name that CUDA gives the device, its maker left out.
        half: bf16 and fp16 on tensor cores that add in fp32; on GPUs without `tf32` it is that of fp16, and bf16 has none.
        tf32: fp32 matrices on tensor cores; None: it has none.
        fp32: fp32 outside the tensor cores, which is what PyTorch computes by default.
        sheet: The data sheet, and how its figures were read.
    """

    name: str
    half: float
    tf32: float | None
    fp32: float
    sheet: str


_H100 = "NVIDIA H100 Tensor Core GPU data sheet, tensor figures halved"
_HOPPER_CHINA = "no public data sheet; as server makers list it, that of its H100 form factor"
_ADA = "NVIDIA Ada GPU Architecture white paper v2.1, appendix: FP32 accumulate"
_AMPERE = "NVIDIA Ampere GA102 GPU Architecture white paper v2.1, appendix: FP32 accumulate"
PEAKS = (
    Peak(name=r"GB200.*", half=2500, tf32=1250, fp32=80, sheet="NVIDIA GB200 NVL72 data sheet over 72, tensor figures halved"),
    Peak(name=r"B200.*", half=2250, tf32=1125, fp32=75, sheet="NVIDIA HGX B200 data sheet over 8, tensor figures halved"),
    Peak(name=r"GH200.*", half=989.4, tf32=494.7, fp32=67, sheet="NVIDIA GH200 Grace Hopper Superchip data sheet, halved"),
    Peak(name=r"H200 NVL", half=835.5, tf32=417.5, fp32=60, sheet="NVIDIA H200 Tensor Core GPU data sheet, tensor figures halved"),
    Peak(name=r"H200", half=989.4, tf32=494.7, fp32=67, sheet="NVIDIA H200 Tensor Core GPU data sheet, tensor figures halved"),
    Peak(name=r"H100 NVL", half=835.5, tf32=417.5, fp32=60, sheet=_H100),
    Peak(name=r"H100 (PCIe|\d+GB HBM2e)", half=756.5, tf32=378, fp32=51, sheet=_H100),
    Peak(name=r"H100 (SXM5.*|\d+GB HBM3e?)", half=989.4, tf32=494.7, fp32=67, sheet=_H100),
    Peak(name=r"H800 PCIe", half=756.5, tf32=378, fp32=51, sheet=_HOPPER_CHINA),
    Peak(name=r"H800( SXM5.*)?", half=989.4, tf32=494.7, fp32=67, sheet=_HOPPER_CHINA),
    Peak(name=r"H20(-3e)?( .*)?", half=148, tf32=74, fp32=44, sheet="no public data sheet; as server makers list it, dense"),
    Peak(name=r"A100.*", half=312, tf32=156, fp32=19.5, sheet="NVIDIA A100 Tensor Core GPU data sheet"),
    Peak(name=r"A800.*", half=312, tf32=156, fp32=19.5, sheet="NVIDIA A800 40GB Active data sheet, tensor figures halved"),
    Peak(name=r"A30", half=165, tf32=82, fp32=10.3, sheet="NVIDIA A30 Tensor Core GPU data sheet"),
    Peak(name=r"A40", half=149.7, tf32=74.8, fp32=37.4, sheet="NVIDIA A40 data sheet"),
    Peak(name=r"A10", half=125, tf32=62.5, fp32=31.2, sheet="NVIDIA A10 Tensor Core GPU data sheet"),
    Peak(name=r"A10G", half=70, tf32=35, fp32=31.5, sheet="NVIDIA A10G data sheet"),
    Peak(name=r"L40S", half=362.05, tf32=183, fp32=91.6, sheet="NVIDIA L40S data sheet"),
    Peak(name=r"L40", half=181.05, tf32=90.5, fp32=90.5, sheet="NVIDIA L40 data sheet"),
    Peak(name=r"L4", half=121, tf32=60, fp32=30.3, sheet="NVIDIA L4 Tensor Core GPU data sheet, tensor figures halved"),
    Peak(name=r"RTX 6000 Ada Generation", half=364.2, tf32=182.1, fp32=91.1, sheet="NVIDIA Ada Lovelace Professional GPU Architecture white paper"),
    Peak(name=r"GeForce RTX 4090", half=165.2, tf32=82.6, fp32=82.6, sheet=_ADA),
    Peak(name=r"GeForce RTX 4080", half=97.5, tf32=48.7, fp32=48.7, sheet=_ADA),
    Peak(name=r"RTX A6000", half=154.8, tf32=77.4, fp32=38.7, sheet=_AMPERE),
    Peak(name=r"GeForce RTX 3090", half=71, tf32=35.6, fp32=35.6, sheet=_AMPERE),
    Peak(name=r"GeForce RTX 3080", half=59.5, tf32=29.8, fp32=29.8, sheet=_AMPERE),
    Peak(name=r"T4", half=65, tf32=None, fp32=8.1, sheet="NVIDIA T4 Tensor Core GPU data sheet"),
    Peak(name=r"V100-SXM.*", half=125, tf32=None, fp32=15.7, sheet="NVIDIA V100 Tensor Core GPU data sheet"),
    Peak(name=r"V100-PCIE.*", half=112, tf32=None, fp32=14, sheet="NVIDIA V100 Tensor Core GPU data sheet"),
    Peak(name=r"V100S-PCIE.*", half=130, tf32=None, fp32=16.4, sheet="NVIDIA V100 Tensor Core GPU data sheet"),
)  # fmt: skip
_MAKER = re.compile(r"^(NVIDIA |Tesla )*")


def find_peak(device_name: str) -> Peak | None:
    """The row of a device, by the name that CUDA gives it.

    None where no row fits the whole name: laptops' and export versions of a card compute less, a slice of a device (MIG)
    has a share of its peak, and plain `H100` may be any of three boards.
    """
    name = _MAKER.sub("", device_name)
    if " MIG " in name:
        return None
    return next((peak for peak in PEAKS if re.fullmatch(peak.name, name)), None)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Dense peak of a device per second in the type that its matrices are multiplied in; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = find_peak(name)
    if peak is None:
        rank_zero_warn(f"The peak of {name!r} is not known, so mfu is null. See vlmkit/training/peaks.py.")
        return None
    trillions = _rate(peak, precision)
    return None if trillions is None else trillions * 1e12


def _rate(peak: Peak, precision: str) -> float | None:
    if precision.startswith("bf16"):
        return None if peak.tf32 is None else peak.half  # tensor cores before Ampere know neither
    if precision.startswith("16"):
        return peak.half
    if precision.startswith("64"):
        return None
    exact = torch.get_float32_matmul_precision() == "highest" or peak.tf32 is None
    return peak.fp32 if exact else peak.tf32
