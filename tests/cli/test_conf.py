"""Configuration: everything composes, presets and the command line win in the right order, nothing heavy is imported."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.training.conftest import environment
from vlmkit.config import conf_dir, options_of

OURS = {"attn_implementation", "gradient_checkpointing"}
GROUPS = ("model", "data", "freeze", "optim", "trainer", "logger", "stage")
RUNTIME = {"directory", "source", "sources", "root", "name"}


def composed(command, *overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(command, overrides=list(overrides))


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in options_of(group)])
def test_every_option_of_every_group_composes(group, option):
    assert composed("train", f"{group}={option}") is not None


def target_of(node):
    module, _, name = node["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("command", "key", "overrides"),
    [
        ("train", "model", ["model=vision2b_llm0_6b"]),
        ("train", "model", ["model=qwen3_vl"]),
        ("train", "data", ["data=llava"]),
        ("train", "freeze", []),
        ("train", "optim", []),
        ("train", "optim", ["optim=alignment"]),
        ("train", "callbacks.receipt", []),
        ("eval", "backend", []),
    ],
)
def test_keys_are_the_constructor_s_arguments_and_have_no_python_default(command, key, overrides):
    node = OmegaConf.to_container(OmegaConf.select(composed(command, *overrides), key), resolve=False)
    signature = inspect.signature(target_of(node))
    keys = set(node) - {"_target_"} - OURS
    named = {name for name, parameter in signature.parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    assert keys <= named
    assert {name for name in named - keys if signature.parameters[name].default is inspect.Parameter.empty} <= RUNTIME
    assert not [name for name in keys if signature.parameters[name].default is not inspect.Parameter.empty]


def test_a_stage_wins_over_its_groups_and_the_command_line_over_the_stage():
    stage1 = composed("train", "stage=stage1", "model=vision2b_llm0_6b")
    assert (stage1.freeze.vision_encoder, stage1.freeze.merger, stage1.freeze.language_model) == (True, False, True)
    assert stage1.optim.lr == 1e-3
    assert composed("train", "stage=stage1", "freeze=none").freeze.language_model is False
    assert composed("train", "stage=stage1", "optim.lr=3e-4").optim.lr == 3e-4
    assert composed("train", "model=vision2b_llm0_6b").optim.lr == 1e-5


def test_the_tiny_model_brings_its_own_recipe_and_only_it_does():
    assert composed("train", "stage=stage1").optim.lr == composed("train", "stage=full").optim.lr == 1e-3
    assert composed("train", "optim.lr=5e-4").optim.lr == 5e-4
    assert composed("train", "model=qwen3_vl", "model.path=x").optim.beta2 == 0.999


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
@pytest.mark.parametrize("command", ["train", "assemble", "eval"])
def test_help_and_config_answer_without_torch(command, arguments):
    code = (
        f"import sys; sys.argv = ['vlmkit-{command}', *{arguments!r}]\n"
        f"from vlmkit.cli.{command} import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'lightning', 'datasets'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_key_of_a_yaml_says_what_it_means():
    """But for those that refine a file that explains them, and for settings of Hydra."""
    bare = []
    for path in conf_dir().rglob("*.yaml"):
        text = path.read_text()
        if path.name in ("train.yaml", "eval.yaml", "assemble.yaml"):
            text = text.split("\nhydra:")[0]
        if "defaults:" in text and path.parent != conf_dir():
            continue
        inside_defaults = False
        for line in text.splitlines():
            inside_defaults = line.startswith("defaults:") or (inside_defaults and line.startswith("  - "))
            plain = line.split("#")[0].rstrip()
            if inside_defaults or not plain or plain.endswith(":") or "_target_" in plain or "#" in line:
                continue
            if path.parent.name in ("eval", "logger", "trainer") or path.stem == "tiny" or plain.startswith("devices"):
                continue
            bare.append(f"{path.name}: {line}")
    explained = ("beta1", "beta2", "eps", "lr_merger", "lr_language_model")
    assert [line for line in bare if line.split(": ")[1].split(":")[0].strip() not in explained] == []


def test_the_checkout_s_configuration_is_found():
    assert conf_dir() == Path(__file__).parents[2] / "conf"
