"""`protocol=`: presets and references, what they set, and what a report calls them."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from vlmkit.cli.presets import apply_protocol, preset_of
from vlmkit.config import benchmark_nodes, build, options_of
from vlmkit.errors import ConfigError
from vlmkit.evaluation.benchmark import Benchmark


def made(name, preset, suffix=None, **options):
    """A benchmark as the command makes it, and what its preset is called."""
    told = {"protocol": preset, "prompt_suffix": suffix, "benchmark_options": {name: options} if options else {}}
    config = OmegaConf.create(told)
    node = benchmark_nodes([name], config.benchmark_options)[name]
    apply_protocol(node, config, options)
    benchmark = build(node, Benchmark)
    return benchmark, preset_of(benchmark, config)


@pytest.mark.parametrize(
    ("name", "protocol", "followed", "told"),
    [
        ("gqa", "house", "lmms-eval", "house"),
        ("gqa", None, "lmms-eval", "house"),
        ("gqa", "paper", "lmms-eval", "paper"),
        ("gqa", "vlmevalkit", "vlmevalkit", "vlmevalkit"),
        ("mathvista", "house", "vlmkit", "house"),
        ("mathvista", "paper", "lmms-eval", "paper"),
        ("mvbench", "paper", "vlmevalkit", "paper"),
        ("videomme", "paper", "vlmevalkit", "paper"),
        ("stvqa", "vlmevalkit", "lmms-eval", "house"),
    ],
)
def test_a_preset_sets_the_protocol_and_is_named(name, protocol, followed, told):
    benchmark, preset = made(name, protocol)
    assert (benchmark.protocol, preset) == (followed, told)


def test_the_paper_s_quirks_come_along_and_one_s_own_options_win():
    assert made("mmmu", "paper")[0].random_guess is True
    assert made("mmmu", "house")[0].random_guess is False
    benchmark, preset = made("mmmu", "paper", random_guess=False)
    assert (benchmark.random_guess, preset) == (False, "paper, changed: random_guess")


def test_what_is_changed_on_top_is_told_but_not_where_the_data_lies():
    assert made("gqa", "house", " Short!")[1] == "house, changed: prompt_suffix"
    assert made("gqa", "house", protocol="vlmevalkit", data_root="/x", split="y")[1] == "house, changed: protocol"


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="protocol=papers: choose house, paper, lmms-eval or vlmevalkit"):
        made("gqa", "papers")


@pytest.mark.parametrize("name", [name for name in options_of("eval") if name != "shapes"])
def test_every_benchmark_follows_one_reference_throughout_in_the_paper_preset(name):
    assert made(name, "paper")[0].protocol in ("lmms-eval", "vlmevalkit")
