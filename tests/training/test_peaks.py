"""Peaks of GPUs: each figure of the table, by the names that CUDA gives the devices."""

from __future__ import annotations

import warnings

import pytest
import torch

from vlmkit.training.peaks import PEAKS, find_peak, peak_flops

FIGURES = {
    "NVIDIA GB200": (2500, 1250, 80),
    "NVIDIA B200": (2250, 1125, 75),
    "NVIDIA GH200 480GB": (989.4, 494.7, 67),
    "NVIDIA H200 NVL": (835.5, 417.5, 60),
    "NVIDIA H200": (989.4, 494.7, 67),
    "NVIDIA H100 NVL": (835.5, 417.5, 60),
    "NVIDIA H100 PCIe": (756.5, 378, 51),
    "NVIDIA H100 80GB HBM2e": (756.5, 378, 51),
    "NVIDIA H100 80GB HBM3": (989.4, 494.7, 67),
    "NVIDIA H800 PCIe": (756.5, 378, 51),
    "NVIDIA H800": (989.4, 494.7, 67),
    "NVIDIA H20": (148, 74, 44),
    "NVIDIA H20-3e": (148, 74, 44),
    "NVIDIA A100-SXM4-80GB": (312, 156, 19.5),
    "NVIDIA A100 80GB PCIe": (312, 156, 19.5),
    "A100-PCIE-40GB": (312, 156, 19.5),
    "NVIDIA A800-SXM4-80GB": (312, 156, 19.5),
    "NVIDIA A800 80GB PCIe": (312, 156, 19.5),
    "NVIDIA A30": (165, 82, 10.3),
    "NVIDIA A40": (149.7, 74.8, 37.4),
    "NVIDIA A10": (125, 62.5, 31.2),
    "NVIDIA A10G": (70, 35, 31.5),
    "NVIDIA L40S": (362.05, 183, 91.6),
    "NVIDIA L40": (181.05, 90.5, 90.5),
    "NVIDIA L4": (121, 60, 30.3),
    "NVIDIA RTX 6000 Ada Generation": (364.2, 182.1, 91.1),
    "NVIDIA GeForce RTX 4090": (165.2, 82.6, 82.6),
    "NVIDIA GeForce RTX 4080": (97.5, 48.7, 48.7),
    "NVIDIA RTX A6000": (154.8, 77.4, 38.7),
    "NVIDIA GeForce RTX 3090": (71, 35.6, 35.6),
    "NVIDIA GeForce RTX 3080": (59.5, 29.8, 29.8),
    "Tesla T4": (65, None, 8.1),
    "Tesla V100-SXM2-32GB": (125, None, 15.7),
    "Tesla V100-PCIE-16GB": (112, None, 14),
    "Tesla V100S-PCIE-32GB": (130, None, 16.4),
}
CUDA = torch.device("cuda", 0)


@pytest.fixture
def on(monkeypatch):
    """Lets CUDA give the device a name."""

    def name(device_name):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: device_name)

    return name


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_a_device_are_the_dense_ones_of_its_data_sheet(on, name):
    half, tf32, fp32 = FIGURES[name]
    on(name)
    brain = None if tf32 is None else pytest.approx(half * 1e12)
    assert peak_flops(CUDA, "bf16-mixed") == brain
    assert peak_flops(CUDA, "bf16-true") == brain
    assert peak_flops(CUDA, "16-mixed") == pytest.approx(half * 1e12)
    assert peak_flops(CUDA, "32-true") == pytest.approx(fp32 * 1e12)
    torch.set_float32_matmul_precision("high")
    try:
        assert peak_flops(CUDA, "32-true") == pytest.approx((tf32 or fp32) * 1e12)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_every_row_is_tested_and_names_its_source():
    assert [row for row in PEAKS if row not in [find_peak(name) for name in FIGURES]] == []
    assert all("data sheet" in row.sheet or "white paper" in row.sheet for row in PEAKS)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100",  # SXM, PCIe or NVL
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3080 Ti",
        "NVIDIA L20",
        "NVIDIA H2000",
    ],
)
def test_a_device_that_the_table_does_not_name_has_no_peak(on, name):
    on(name)
    with pytest.warns(UserWarning, match=f"The peak of '{name}' is not known, so mfu is null"):
        assert peak_flops(CUDA, "bf16-mixed") is None


def test_neither_a_cpu_nor_fp64_has_a_peak(on):
    on("NVIDIA A100-SXM4-80GB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert peak_flops(torch.device("cpu"), "bf16-mixed") is None
        assert peak_flops(CUDA, "64-true") is None
