"""Configuration: everything composes and binds, the right value wins, wrong words are told, nothing heavy is imported."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.training.conftest import environment
from vlmkit.config import conf_dir, options_of

COMMANDS = ("train", "check", "inspect", "assemble", "eval", "compare", "convert")
USED = {
    "train": ("model", "data", "freeze", "stage", "optim", "trainer", "logger", "callbacks", "experiment"),
    "check": ("model", "data", "freeze", "stage", "optim", "trainer", "logger", "callbacks", "experiment"),
    "inspect": ("model", "data", "freeze", "stage"),
    "assemble": ("model",),
    "eval": ("model", "backend"),
    "compare": (),
    "convert": (),
}
"""The groups of each command."""
KINDS_OF_MODEL = ("tiny", "qwen3_vl", "vision2b_llm0_6b", "qwen3_vl_30b_a3b")
"""The other models are these with other hub ids: composing them with one command will do."""
CHOICES = [
    (command, group, option)
    for command in COMMANDS
    for group in USED[command]
    for option in options_of(group)
    if group != "model" or command == "train" or option in KINDS_OF_MODEL
]
OURS = {"attn_implementation", "gradient_checkpointing", "compile", "kernels", "lora"}
"""Settings of `model` that concern training: not for the constructor."""
HELD_OUT = {"validation"}
"""A setting of `data` that the command takes."""
LOOPED = {"max_epochs", "max_steps"}
"""Settings of `trainer` that the plan takes."""
AT_RUN_TIME = {"HFBackend": {"directory"}, "VLLMBackend": {"directory"}}
"""Arguments that code gives, not yaml."""


def composed(command, *overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(command, overrides=list(overrides))


def nodes(config, path=""):
    """Every mapping with a `_target_`, and where it stands."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield path, config
        for key, value in config.items():
            yield from nodes(value, f"{path}.{key}".lstrip("."))


def target_of(node):
    """The constructor, and the one it hands its keyword arguments on to."""
    module, _, name = node["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def parameters_of(node):
    """Parameters by name; of a demo function with `**settings` those of the class it makes."""
    from vlmkit.data.datamodule import PackedDataModule
    from vlmkit.model.assembly import Assembly

    handed_on = {"tiny_assembly": Assembly, "shapes_datamodule": PackedDataModule}
    factory = target_of(node)
    return inspect.signature(handed_on.get(factory.__name__, factory)).parameters


# --- composing and binding --------------------------------------------------------------------------------------------


def test_every_group_is_covered_here():
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    assert groups == {group for used in USED.values() for group in used} | {"eval", "hydra"}


@pytest.mark.parametrize(("command", "group", "option"), CHOICES)
def test_every_choice_composes_and_its_keys_bind(command, group, option):
    config = OmegaConf.to_container(composed(command, f"{group}={option}"), resolve=False)
    found = list(nodes({group: config.get(group)}))
    for path, node in found:
        keys = (
            set(node)
            - {"_target_"}
            - (OURS if path == "model" else LOOPED if path == "trainer" else HELD_OUT if path == "data" else set())
        )
        parameters = parameters_of(node)
        takes = {name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
        assert keys <= takes, f"{group}={option}: {path} gives {sorted(keys - takes)}, which {node['_target_']} lacks"
        if node["_target_"].startswith("vlmkit."):
            _check_ours(node, keys, parameters)
    assert found or group in ("stage", "logger", "experiment"), f"{group}={option} describes nothing"


@pytest.mark.parametrize("name", options_of("eval"))
def test_a_benchmark_s_keys_bind(name):
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "eval" / f"{name}.yaml"), resolve=False)
    keys, parameters = set(node) - {"_target_"}, parameters_of(node)
    assert keys == set(parameters)
    _check_ours(node, keys, parameters)


def test_the_judge_s_keys_bind():
    node = OmegaConf.to_container(composed("eval"), resolve=False)["judge"]
    keys, parameters = set(node) - {"_target_"}, parameters_of(node)
    assert keys == set(parameters)
    _check_ours(node, keys, parameters)


@pytest.mark.parametrize("path", sorted((conf_dir() / "hydra").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_a_sweeper_s_or_launcher_s_keys_bind(path):
    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    keys = set(node) - {"_target_", "_recursive_"}
    parameters = parameters_of(node)
    assert keys == set(parameters)
    _check_ours(node, keys, parameters)


def _check_ours(node, keys, parameters):
    """Of a class of ours: keyword-only, no public option with a Python default, and none that yaml leaves out."""
    factory = target_of(node)
    public = {name: parameters[name] for name in keys}
    assert {name for name, one in public.items() if one.kind is not one.KEYWORD_ONLY} == set()
    assert {name for name, one in public.items() if one.default is not one.empty} == set()
    needed = {name for name, one in parameters.items() if one.default is one.empty}
    given = set(keys) | AT_RUN_TIME.get(factory.__name__, set())
    if not any(one.kind is one.VAR_KEYWORD for one in inspect.signature(factory).parameters.values()):
        assert needed <= given, f"{node['_target_']} needs {sorted(needed - given)}, which its yaml does not give"


def test_every_setting_says_what_it_means():
    from vlmkit.cli.options import settings

    told = settings()
    assert len(told) > 80
    assert [one.name for one in told if not one.meaning] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_composed_key_is_a_known_option(command):
    """The table reads comments and yaml by itself: nothing that Hydra composes may be missing from it."""
    from vlmkit.cli.options import settings

    known = {one.name for one in settings()} | {"logger"}  # logger=none is an empty mapping
    for _, group, option in (choice for choice in CHOICES if choice[0] == command):
        config = OmegaConf.to_container(composed(command, f"{group}={option}"), resolve=False)
        assert set(leaves(config)) <= known, f"{group}={option}"


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}"


def test_every_yaml_says_at_its_head_what_it_is():
    for path in conf_dir().rglob("*.yaml"):
        told = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert told[0].startswith("# "), path


def test_no_yaml_gives_a_key_twice():
    """PyYAML keeps the last one and says nothing."""
    for path in conf_dir().rglob("*.yaml"):
        root = yaml.compose(path.read_text())
        for node in _mappings(root):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), path


def _mappings(node):
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)


# --- which value wins -------------------------------------------------------------------------------------------------


def test_a_stage_wins_over_its_groups_and_the_command_line_over_the_stage():
    stage1 = composed("train", "stage=stage1", "model=vision2b_llm0_6b")
    assert (stage1.freeze.vision_encoder, stage1.freeze.merger, stage1.freeze.language_model) == (True, False, True)
    assert stage1.optim.lr == 1e-3
    assert stage1.trainer.max_epochs == 1
    assert composed("train", "stage=stage1", "freeze=none").freeze.language_model is False
    assert composed("train", "stage=stage1", "optim.lr=3e-4").optim.lr == 3e-4
    assert composed("train", "stage=stage1", "trainer.max_epochs=3").trainer.max_epochs == 3


@pytest.mark.parametrize(
    ("stage", "frozen"),
    [("stage1", (True, False, True)), ("stage2", (True, False, False)), ("full", (False, False, False))],
)
def test_each_stage_freezes_its_parts_whatever_stood_there(stage, frozen):
    freeze = composed("train", f"stage={stage}").freeze
    assert (freeze.vision_encoder, freeze.merger, freeze.language_model) == frozen


def test_the_tiny_model_s_recipe_wins_over_the_stage_and_loses_to_the_command_line():
    own = yaml.safe_load((conf_dir() / "model" / "tiny.yaml").read_text())["optim"]
    assert own["lr"] != composed("train", "model=vision2b_llm0_6b", "stage=full").optim.lr
    for stage in options_of("stage"):
        optim = composed("train", f"stage={stage}").optim
        assert {key: optim[key] for key in own} == own
        assert composed("train", f"stage={stage}", "optim.lr=5e-4").optim.lr == 5e-4


def test_the_recipe_of_the_tiny_model_stays_with_it():
    assert composed("train", "model=qwen3_vl", "model.path=x").optim.lr == 1e-5
    assert composed("train", "model=vision2b_llm0_6b").optim.beta2 == 0.999


@pytest.mark.parametrize("overrides", [(), ("stage=stage1", "data=llava", "optim.lr=2", "run_dir=x")], ids=str)
def test_a_check_is_composed_as_the_training_it_checks(overrides):
    fixed = () if "run_dir=x" in overrides else ("run_dir=x",)
    train, check = (OmegaConf.to_container(composed(name, *overrides, *fixed)) for name in ("train", "check"))
    assert check.pop("check").keys() == {"format", "limit", "bad_rows", "decode", "forecast"}
    assert check == train


def test_lists_are_taken_as_they_are_written():
    """Sources plain or with settings, several loggers, all benchmarks; each job of a sweep has its own choice."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from vlmkit.config import benchmark_nodes

    data = composed("train", "data=llava", "data.sources=[a.json,{path: b.jsonl, weight: 2}]").data
    assert OmegaConf.to_container(data.sources) == ["a.json", {"path": "b.jsonl", "weight": 2}]
    assert set(composed("train", "logger=[csv,wandb]").logger) == {"csv", "wandb"}
    assert composed("train", "logger=none").logger == {}
    assert sorted(benchmark_nodes("all")) == options_of("eval")
    assert list(benchmark_nodes(composed("eval", "benchmarks=[gqa,mmmu]").benchmarks)) == ["gqa", "mmmu"]
    overrides = OverridesParser.create().parse_overrides(["freeze=merger_only,vision_frozen"])
    jobs = BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
    chosen = [composed("train", *job).freeze.language_model for job in jobs]
    assert chosen == [True, False]


# --- the commands -----------------------------------------------------------------------------------------------------


def ask(command, *arguments):
    """Run a command in a process of its own; its status, output and errors, and the heavy modules it imported."""
    code = (
        f"import sys; sys.argv = ['vlmkit-{command}', *{list(arguments)!r}]\n"
        f"from vlmkit.cli.{command} import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    status = int(end.code or 0)\nelse:\n    status = 0\n"
        "heavy = sorted({'torch', 'transformers', 'lightning', 'datasets'} & set(sys.modules))\n"
        "print('heavy', heavy, file=sys.stderr); sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]], ids=" ".join)
@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_config_answer_without_torch(command, arguments):
    status, output, errors = ask(command, *arguments)
    assert (status, errors) == (0, "heavy []\n")
    assert output


@pytest.mark.parametrize(
    ("command", "override", "answer"),
    [
        (
            "train",
            "data.sources=[x]",
            "data.sources: no such setting. The chosen data= does not have it: choose data=llava",
        ),
        (
            "train",
            "model.path=x",
            "model.path: no such setting. The chosen model= does not have it: choose model=qwen3_vl or one of ",
        ),
        ("train", "model.pth=x", "model.pth: no such setting. Did you mean model.path?\n"),
        ("train", "model.atn_implementation=sdpa", "Did you mean model.attn_implementation?\n"),
        ("train", "model.lora.rnk=4", "Did you mean model.lora.rank?\n"),
        ("train", "model.zzz=1", "model.zzz: no such setting. There are: model.merger_init, "),
        ("train", "data.souces=[a]", "data.souces: no such setting. Did you mean data.sources"),
        ("train", "trainer.maxsteps=3", "trainer.maxsteps: no such setting. Did you mean trainer.max_steps"),
        ("train", "batch_size=4", "Did you mean data.batch_size or validate.batch_size?"),
        ("train", "optim.lrr=1", "optim.lrr: no such setting. Did you mean optim.lr?"),
        ("train", "data.sorces=", "data.sorces: no such setting. Did you mean data.sources?"),
        ("train", "max_steps=3", "max_steps: no such setting. Did you mean trainer.max_steps?"),
        ("train", "trainer.epochs=2", "trainer.epochs: no such setting. Did you mean trainer.max_epochs?"),
        ("train", "model.rank=8", "model.rank: no such setting. Did you mean model.lora.rank?"),
        ("train", "optim.zzz=1", "optim.zzz: no such setting. There are: optim.lr, "),
        ("train", "optim.lr.x=1", "optim.lr.x: no such setting. Did you mean optim.lr?"),
        ("train", "zzz=1", "zzz: no such setting. There are: run_dir, "),
        ("train", "~optim.lrr", "optim.lrr: no such setting. Did you mean optim.lr?"),
        ("train", "+foo=1", "foo: nothing reads such a setting. There are: callbacks, data, "),
        ("train", "+dat.limit=1", "dat.limit: nothing reads such a setting."),
        ("train", "-m optim.lrr=1,2", "optim.lrr: no such setting. Did you mean optim.lr?"),
        ("train", "-m data=llava,shaps", "data=shaps: no such option. Did you mean shapes?"),
        ("train", "data=lava", "data=lava: no such option. Did you mean llava? There are: cambrian_737k, "),
        ("train", "stage=stge1", "stage=stge1: no such option. Did you mean stage1 or stage2? There are: full, "),
        ("train", "freeze=vision", "Did you mean vision_frozen? There are: merger_only, none, vision_frozen."),
        ("train", "logger=[csv,wnadb]", "logger=wnadb: no such option. Did you mean wandb? There are: csv, "),
        ("train", "eval=gqa", "vlmkit-train takes no eval=. There are: run_dir, "),
        ("assemble", "data=llava", "data: no such setting. vlmkit-assemble takes no data=. There are: out, "),
        ("convert", "fields.qestion=ask", "fields.qestion: no such setting. Did you mean fields.question?"),
        ("train", "stge=stage1", "stge: no such setting. Did you mean stage?"),
        ("eval", "ckptt=x", "ckptt: no such setting. Did you mean ckpt?"),
        ("assemble", "model.vision_encodr=x", "Did you mean model.vision_encoder"),
        ("train", "model=nope", "model=nope: no such option. There are: qwen2_5_vision3b_llm1_5b, "),
        ("train", "model=tinny", "model=tinny: no such option. Did you mean tiny?"),
        ("train", "logger=", "logger=: no such option. There are: csv, mlflow, none, tensorboard, wandb."),
        ("train", "data.sources=[a", "data.sources=[a: not readable as key=value"),
        ("train", "resume", "resume: a setting without a value. Write resume=VALUE."),
        ("convert", "image=photos/{n}.jpg", "put a text with braces, commas or spaces into quotes of its own"),
        ("check", "-m optim.lr=1e-3,1e-4", "-m: vlmkit-check takes one set of settings. Call it once for each"),
        ("inspect", "--multirun optim.lr=1e-3,1e-4", "vlmkit-train -m sweeps."),
        ("eval", "-m ckpt=a,b", "-m: vlmkit-eval takes one set of settings."),
        ("inspect", "inspect.out=/tmp", "inspect.out=/tmp: this is a directory. Name a file"),
        ("inspect", "inspect.num_samples=few", "inspect.num_samples=few: wanted a whole number of at least 1."),
        ("eval", "max_samples_per_benchmark=three", "wanted a whole number of at least 1, or null."),
        ("eval", "ckpt=nowhere", "ckpt=nowhere: no model there."),
        ("eval", "benchmarks=[gone.jsonl]", "there is no file gone.jsonl (seen from "),
        ("eval", "benchmarks=[minne]", "Questions of your own are named by their file: benchmarks=[mine.jsonl]."),
        ("chat", "ckpt=nowhere", "ckpt=nowhere: no model there."),
        ("chat", "image=/tmp", "image=/tmp: this is a directory. Name a file in it."),
        ("eval", "benchmarks=[shaped]", "no benchmark is named 'shaped'. Did you mean shapes?"),
        ("eval", "+benchmark_options.shapes.promt_suffix=x", "Did you mean prompt_suffix?"),
        ("eval", "+benchmark_options.chartqa.split=x", "chartqa is not among benchmarks=['shapes']"),
    ],
)
def test_wrong_words_are_told_with_what_was_meant(command, override, answer):
    status, _, errors = ask(command, *override.split(" "))
    assert status == 1
    assert answer in errors
    assert "Traceback" not in errors
    assert "heavy []" in errors


def test_an_added_setting_that_its_constructor_does_not_know_is_told_with_what_was_meant():
    from vlmkit.config import build
    from vlmkit.errors import ConfigError

    for override, told in {
        "+optim.lrr=1": r"^optim\.lrr: no such setting\. Did you mean optim\.lr\? There are: optim\.lr, optim\.lr_vision",
        "++freeze.merge=1": r"^freeze\.merge: no such setting\. Did you mean freeze\.merger\? There are: freeze\.vision_encoder, ",
    }.items():
        group = override.lstrip("+").split(".")[0]
        with pytest.raises(ConfigError, match=told):
            build(composed("train", override)[group], object)


def test_a_suggestion_is_never_a_class_path():
    assert "_target_" not in ask("train", "optim.target=x")[2]


def test_a_setting_without_a_value_is_asked_for():
    from vlmkit.config import build
    from vlmkit.errors import ConfigError

    node = composed("train", "model=qwen3_vl").model
    with pytest.raises(ConfigError, match=r"^model\.path must be given"):
        build(node, object)


def test_a_setting_of_the_wrong_type_is_told_by_its_key():
    from vlmkit.config import build
    from vlmkit.errors import ConfigError

    for override, wanted in {
        "optim.lr=abc": r"optim\.lr=abc: wanted a number, got a text\.",
        "optim.warmup_ratio=true": r"optim\.warmup_ratio=True: wanted a number, got true or false\.",
        "optim.lr_merger=abc": r"optim\.lr_merger=abc: wanted a number or null, got a text\.",
        "freeze.merger=5": r"freeze\.merger=5: wanted true or false, got a whole number\.",
    }.items():
        node = composed("train", override)[override.split(".")[0]]
        with pytest.raises(ConfigError, match=wanted):
            build(node, object)


@pytest.mark.parametrize("option", ["cambrian_737k", "cambrian_7m"])
def test_data_that_must_be_downloaded_asks_where_it_is(option):
    from vlmkit.cli.validating import make_data
    from vlmkit.errors import ConfigError

    with pytest.raises(ConfigError, match=r"^data\.root must be given: there is no default\. Add data\.root=\.\.\.$"):
        make_data(composed("train", f"data={option}").data)
    with pytest.raises(ConfigError, match=r"no file at '/nowhere/Cambrian7\w+\.jsonl'"):
        make_data(composed("train", f"data={option}", "data.root=/nowhere").data)


def test_what_choices_share_is_no_choice():
    assert options_of("data") == ["cambrian_737k", "cambrian_7m", "llava", "shapes"]


@pytest.mark.parametrize("override", ["trainer.max_steps=x", "trainer.max_epochs=2.5", "seed=x"])
def test_numbers_of_the_run_are_checked_before_anything_is_read(override, tmp_path):
    status, _, errors = ask("train", override, f"run_dir={tmp_path / 'run'}")
    assert status == 1
    key, value = override.split("=")
    assert errors.startswith(f"vlmkit-train: {key}={value}: wanted a whole number")
    assert "Error executing" not in errors
    assert "Traceback" not in errors


def test_an_optimiser_that_the_command_line_names_is_left_to_be_made():
    """As composed, where no new key may be added."""
    import torch

    from vlmkit.cli.training import optimizer_node
    from vlmkit.config import build
    from vlmkit.training.optim import OptimizerPlan

    node = composed("train", "optim.optimizer={_target_: torch.optim.SGD, momentum: 0.9}").optim
    plan = build(optimizer_node(node), OptimizerPlan)
    assert (plan.optimizer.func, plan.optimizer.keywords) == (torch.optim.SGD, {"momentum": 0.9})
    assert "_partial_" not in node.optimizer, "what is saved with the run is what was given"


def test_an_error_of_the_system_that_names_no_file_is_not_told_as_a_wrong_path():
    from vlmkit.config import _wrong_place

    assert str(_wrong_place(PermissionError(13, "Permission denied", "/here"))).startswith("/here: Permission denied.")
    with pytest.raises(PermissionError, match="Operation not permitted"):
        _wrong_place(PermissionError(1, "Operation not permitted"))
