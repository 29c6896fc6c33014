"""Machines: every yaml can be read and holds what its data sheet says, requests are parsed, wrong ones are refused."""

from __future__ import annotations

import pytest

from vlmkit.cli.checking_machines import load_machine
from vlmkit.config import conf_dir
from vlmkit.errors import ConfigError
from vlmkit.preflight.machine import Machine, Request, parse_requests
from vlmkit.training.peaks import find_peak

# Dense peaks in 1e12 FLOPs a second (bf16, TF32), GB/s of memory, and GB/s to a neighbour in one direction.
SHEETS = {
    "h100": (989.4, 494.7, 3350, 450),
    "h200": (989.4, 494.7, 4800, 450),
    "a100-40": (312, 156, 1555, 300),
    "a100-80": (312, 156, 2039, 300),
    "l40s": (362.05, 183, 864, 32),
    "rtx4090": (165.2, 82.6, 1008, 32),
    "b200": (2250, 1125, 8000, 900),
    "mi300x": (1307.4, 653.7, 5300, 448),
}


def test_every_machine_has_a_data_sheet_here():
    assert {path.stem for path in (conf_dir() / "machine").glob("*.yaml")} == set(SHEETS)


@pytest.mark.parametrize("name", SHEETS)
def test_figures(name):
    machine = load_machine(Request(1, name))
    assert (machine.bf16_tflops, machine.tf32_tflops, machine.bandwidth_gb, machine.link_gb) == SHEETS[name]
    assert "Source: " in (conf_dir() / "machine" / f"{name}.yaml").read_text()


def test_requests():
    assert parse_requests("8xh100") == [Request(8, "h100")]
    assert parse_requests(["1xrtx4090", "16xa100-80"]) == [Request(1, "rtx4090"), Request(16, "a100-80")]
    assert str(Request(8, "h100")) == "8xh100"
    assert parse_requests(None) == []


@pytest.mark.parametrize("entry", ["h100", "0xh100", "8 h100", "8x", "-1xh100"])
def test_what_is_no_request_is_refused(entry):
    with pytest.raises(ConfigError, match=r"check.on=.*: expected a number of GPUs and a machine. Give 8xh100"):
        parse_requests([entry])


def test_an_unknown_machine_is_refused_with_what_there_is():
    with pytest.raises(ConfigError, match=r"check.on=8xh1000: no such machine. There are a100-40, .*mi300x, rtx4090"):
        load_machine(Request(8, "h1000"))


def test_a_machine_of_ones_own(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text(
        "name: Mine\nmemory_gib: 48\nbf16_tflops: 300\ntf32_tflops: 150\nbandwidth_gb: 900\nlink_gb: 32\n"
        "network_gb: 10\ngpus: 4\ncapability: [8, 9]\n"
    )
    machine = load_machine(Request(2, str(own)))
    assert machine.memory_bytes == 48 * 2**30
    own.write_text(own.read_text().replace("bandwidth_gb: 900", "bandwidth_gb: -1"))
    with pytest.raises(ConfigError, match=r"mine.yaml.*machine.bandwidth_gb must be positive, got -1"):
        load_machine(Request(2, str(own)))


def test_speeds():
    machine = Machine(
        name="m", memory_gib=1, bf16_tflops=100, tf32_tflops=50, bandwidth_gb=1000, link_gb=100, network_gb=10, gpus=8,
        capability=None, product_share=0.5, bandwidth_share=0.5, link_share=0.5,
    )  # fmt: skip
    assert machine.products_per_second(narrow=True) == 50e12
    assert machine.products_per_second(narrow=False) == 25e12
    assert machine.exchange_per_second(8) == 50e9
    assert machine.exchange_per_second(16) == 5e9  # through the network


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("h100", "H100 SXM5"),
        ("h200", "H200"),
        ("a100-40", "A100-SXM4-40GB"),
        ("a100-80", "A100-SXM4-80GB"),
        ("l40s", "L40S"),
        ("rtx4090", "GeForce RTX 4090"),
        ("b200", "B200"),
    ],
)
def test_the_peaks_are_those_behind_the_utilisation_of_a_run(name, device):
    machine, peak = load_machine(Request(1, name)), find_peak(f"NVIDIA {device}")
    assert peak is not None
    assert (machine.bf16_tflops, machine.tf32_tflops) == (peak.half, peak.tf32)
