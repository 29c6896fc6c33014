"""Settings: of every option, what may not be is refused in a line with its key, and what is accepted can be made."""

from __future__ import annotations

import math
import signal
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from tests.training.conftest import write_manifest
from vlmkit.cli import options
from vlmkit.cli.options import settings
from vlmkit.cli.settings import RULES, check_settings, find_faults
from vlmkit.config import conf_dir, options_of
from vlmkit.errors import ConfigError

GROUPS = {
    "train": ("model", "data", "trainer", "callbacks", "logger"),
    "check": (),
    "inspect": (),
    "assemble": ("model",),
    "eval": ("backend",),
    "compare": (),
    "convert": (),
    "chat": (),
    "doctor": (),
}
"""Of each command, the groups whose choices have other settings than the default one."""
KINDS = {"model": ("tiny", "qwen3_vl", "vision2b_llm0_6b"), "data": ("shapes", "llava")}
"""Of large groups, the choices that others are made of."""
MEANING = {
    command: {one.name: one for one in [*settings(), *options._collect([conf_dir() / f"{command}.yaml"], prefix="")]}
    for command in RULES
}
"""Default and comment of each setting; what commands have under the same name is each one's own."""
MAY_BE_NULL = {"benchmarks", "protocol", "logger.mlflow.tracking_uri", "logger.mlflow.artifact_location",
               "logger.wandb.project", "logger.csv.version", "logger.tensorboard.version", "trainer.max_epochs",
               *(f"data.{key}" for key in ("image_max_pixels", "video_max_pixels", "video_max_frames", "video_fps",
                                           "max_tokens", "batch_size"))}  # fmt: skip
"""Beside those whose default or comment says so."""
NOT_NULL = {"judge.extra_body", "backend.extra_body"}
"""Their comments speak of another null."""
TEXTS = {
    "run_dir", "init_from", "resume_from", "save.best", "sweep.metric", "inspect.out", "inspect.rows", "out", "ckpt",
    "benchmarks", "prompt_suffix", "data_root", "answers", "output_dir", "first", "second", "sweep", "metric", "input",
    "image", "video", "question", "annotations", "root", "media_dir", "report", "cache_dir", "system", "device",
    "directory", "backend.device", "data.validation", "check.bad_rows",
    *(f"{node}.{key}" for node in ("judge", "backend") for key in ("base_url", "model", "api_key_env")),
    *(f"fields.{key}" for key in ("id", "image", "video", "question", "answer", "system", "messages")),
    *(f"model.{key}" for key in ("path", "processor", "vision_encoder", "language_model", "template")),
    *(f"data.{key}" for key in ("name", "root", "cache_dir")),
    *(key for key in RULES["train"] if key.startswith("logger.")),
}  # fmt: skip
"""Settings that take any text."""
EMPTY = {("eval", "prompt_suffix"), ("chat", "question"), ("chat", "system"), ("train", "logger.csv.version"),
         ("train", "logger.tensorboard.version")}  # fmt: skip
"""Texts that may be empty."""
FLAGS = {"check.decode", "use_llm_judge", "check.forecast"}
"""Beside those whose default is true or false."""
NO_ZERO = {
    "save.every_n_steps", "save.every_minutes", "validate.every_n_steps", "validate.max_samples", "validate.batch_size",
    "validate.max_new_tokens", "validate.stop_after", "guard.spike_window", "guard.spike_threshold", "log.every_n_steps",
    "check.limit", "check.decode", "inspect.num_samples", "inspect.rows", "max_samples_per_benchmark", "batch_size",
    "devices", "max_new_tokens", "limit", "judge.timeout_seconds", "judge.concurrency", "judge.max_tokens",
    "backend.timeout_seconds", "backend.concurrency", "backend.workers", "backend.tensor_parallel_size",
    "backend.video_frames", "backend.max_model_len", "backend.gpu_memory_utilization", "model.lora.alpha",
    "optim.layer_decay", "trainer.devices", "trainer.num_nodes", "trainer.max_epochs", "trainer.max_steps",
    "trainer.accumulate_grad_batches", "trainer.strategy.timeout_minutes", "callbacks.average.decay",
    "callbacks.forecast.packs", "callbacks.forecast.rounds", "callbacks.receipt.steps_with_media", "data.validation",
    *(key for key, rule in RULES["train"].items() if key.startswith("data.") and "of at least 1" in rule.wanted),
    "data.video_fps", "data.media_timeout_seconds",
}  # fmt: skip
"""Numbers that 0 would make senseless."""


@cache
def composed(command: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(command, overrides=list(overrides))


def variants(command: str) -> list[DictConfig]:
    """The config of a command with each choice of the groups that matter."""
    found = [composed(command)]
    for group in GROUPS[command]:
        found += [composed(command, f"{group}={option}") for option in KINDS.get(group, options_of(group))]
    return found


def leaves(node: object, prefix: str = ""):
    if isinstance(node, dict) and node:
        for key, value in node.items():
            if key not in ("_target_", "hydra"):
                yield from leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix(".")


def with_value(config: DictConfig, key: str, value: object) -> DictConfig:
    return put(config.copy(), key, value)


def put(config: DictConfig, key: str, value: object) -> DictConfig:
    place, _, name = key.rpartition(".")
    node = OmegaConf.select(config, place) if place else config
    with open_dict(config):
        node[name] = value
    return config


def having(command: str, key: str) -> DictConfig:
    """A config of a command that has a key."""
    place, _, name = key.rpartition(".")
    for config in variants(command):
        node = OmegaConf.select(config, place) if place else config
        if isinstance(node, DictConfig) and name in list(node):
            return config
    return pytest.fail(f"vlmkit-{command} has no setting {key}: remove it from RULES in src/vlmkit/cli/settings.py")


OWN = [
    (command, key)
    for command, rules in RULES.items()
    for key in rules
    if key not in RULES["train"] or command == "train"
]
"""Every setting once."""


@pytest.mark.parametrize("command", RULES)
def test_every_option_has_a_rule(command):
    for config in variants(command):
        keys = set(leaves(OmegaConf.to_container(config, resolve=False)))
        missing = sorted(
            key for key in keys - set(RULES[command]) if not key.startswith("callbacks.") or "." in key[10:]
        )
        missing = [key for key in missing if key not in ("logger", "model.lora")]
        assert missing == [], f"give these a row in RULES of src/vlmkit/cli/settings.py: {', '.join(missing)}"


@pytest.mark.parametrize("command", RULES)
def test_what_is_composed_is_accepted(command):
    for config in variants(command):
        assert find_faults(config, command) == {}


@pytest.mark.parametrize(("command", "key"), OWN)
def test_what_no_option_may_be_is_refused(command, key):
    """Wrong types, negative numbers, zero, null and words that are no choice: the lists above say where they may be."""
    config, told = having(command, key).copy(), MEANING[command][key]
    defaults = set(told.values.values())
    rule = RULES[command][key]
    number_wanted = "number" in rule.wanted
    null = key in MAY_BE_NULL or "null" in defaults or ("null" in told.meaning and key not in NOT_NULL)
    accepted = {
        "banana": key in TEXTS,
        "": (command, key) in EMPTY,
        "null": null,
        "true": defaults & {"true", "false"} != set() or key in FLAGS,
        "negative": key == "trainer.devices",
        "zero": number_wanted and key not in NO_ZERO,
        "half": False,
        "not a number": False,
        "infinite": False,
    }
    values = {
        "banana": "banana", "": "", "null": None, "true": True, "negative": -1, "zero": 0, "half": -0.5,
        "not a number": math.nan, "infinite": math.inf,
    }  # fmt: skip
    for name, value in values.items():
        faults = find_faults(put(config, key, value), command)
        if accepted[name]:
            assert key not in faults, f"{name} is refused: {faults}"
            continue
        assert key in faults, f"{key}={value} is accepted"
        shown = "null" if value is None else "true" if value is True else value
        assert faults[key].startswith((f"{key}={shown}: wanted ", f"{key}={shown}: choose one of "))
        assert "\n" not in faults[key]
    if not {"[]", "{}"} & defaults and not any(word in rule.wanted for word in ("list", "mapping")):
        for value in ([1, 2], {"a": 1}):
            assert key in find_faults(put(config, key, value), command)


@pytest.mark.parametrize(
    ("command", "key"), [(command, key) for command, key in OWN if len(RULES[command][key].choices) > 2]
)
def test_a_misspelt_choice_is_answered_with_the_nearest_and_with_all(command, key):
    rule = RULES[command][key]
    for word in rule.choices:
        faults = find_faults(with_value(having(command, key), key, f"{word}x"), command)
        if key in TEXTS:
            continue
        assert f"Did you mean {word}?" in faults[key]
        assert all(choice in faults[key] for choice in rule.choices)


def test_all_wrong_settings_are_refused_at_once():
    config = with_value(with_value(composed("train"), "save.keep", -3), "model.compile", "perhaps")
    with pytest.raises(ConfigError) as caught:
        check_settings(config, "train")
    assert str(caught.value).splitlines() == [
        "save.keep=-3: wanted a whole number of at least 0.",
        "model.compile=perhaps: wanted true or false.",
    ]


def test_a_reference_to_nothing_is_told_with_its_key():
    faults = find_faults(with_value(composed("train"), "optim.lr", "${optim.rate}"), "train")
    assert faults == {"optim.lr": "optim.lr: Interpolation key 'optim.rate' not found."}


# --- what is accepted can be made -------------------------------------------------------------------------------------


def refusal_of(make, *arguments) -> str:
    """What a user is told of settings that cannot be; "" where they can. Any other exception is a failure."""
    try:
        make(*arguments)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore")  # Lightning's, about precisions that a CPU has not
def test_what_is_accepted_is_made_or_refused_in_a_line_with_its_key(tmp_path):
    from vlmkit.cli.training import late_parts, make_trainer, model_source
    from vlmkit.cli.validating import make_data

    write_manifest(tmp_path, 2)
    manifest = str(tmp_path / "manifest.json")

    usual = make_trainer(composed("train"), tmp_path)

    def make_all(config, group):
        trainer = make_trainer(config, tmp_path) if group == "trainer" else usual
        for key, make in late_parts(config, tmp_path, trainer).items():
            if key.startswith(group) or (key, group) in (
                ("validate", "save"),
                ("model.attn_implementation", "trainer"),
            ):
                make()
        if group == "data":
            make_data(config.data)
        if group == "model" and not OmegaConf.missing_keys(config.model):
            model_source(config.model)

    refusals: list[tuple[str, object, str]] = []
    probes = (0, 1, 2, 7, 0.5, 1.5, None, True, False, "banana", [], ["a"], {}, {"a": 1})
    for key, rule in RULES["train"].items():
        group = key.partition(".")[0]
        if group not in ("model", "data", "optim", "freeze", "guard", "callbacks", "trainer", "validate", "save"):
            continue
        base = having("train", key)
        if group == "data" and "sources" in base.data:
            base = with_value(base, "data.sources", [manifest])
        for value in (*probes, *rule.choices):
            if not rule.accepts(value):
                continue
            config = with_value(base, key, value)
            refusals.append((key, value, refusal_of(make_all, config, group)))
    wrong = [f"{key}={value}: {told!r}" for key, value, told in refusals if told and ("\n" in told or key not in told)]
    assert not wrong, "\n".join(wrong)


# --- each command -----------------------------------------------------------------------------------------------------

CASES = [
    ("model.attn_implementation", "banana", "choose one of auto, flash4, flash3, flash, varlen, sdpa."),
    (
        "model.attn_implementation",
        "flash_attention_2",
        "choose one of auto, flash4, flash3, flash, varlen, sdpa. Did you mean flash?",
    ),
    ("model.compile", "perhaps", "wanted true or false."),
    ("save.every_n_steps", "abc", "wanted a whole number of at least 1, or null."),
    ("save.keep", -3, "wanted a whole number of at least 0."),
    ("log.every_n_steps", "foo", "wanted a whole number of at least 1."),
    ("validate.batch_size", "x", "wanted a whole number of at least 1."),
]


@pytest.mark.parametrize(("key", "value", "message"), CASES)
def test_check_and_training_refuse_in_the_same_words(key, value, message, tmp_path):
    from vlmkit.cli.checking import check
    from vlmkit.cli.training import train

    told = f"{key}={value}: {message}"
    config = with_value(composed("train"), key, value)
    ignored = signal.getsignal(signal.SIGUSR1)
    try:
        with pytest.raises(ConfigError) as caught:
            train(config, tmp_path / "run")
    finally:
        signal.signal(signal.SIGUSR1, ignored)
    assert str(caught.value) == told
    config = with_value(composed("check", "log.progress=false", "data.limit=4", "check.decode=false"), key, value)
    report = check(config, tmp_path / "run")
    assert [message for _, message in report.errors] == [told]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        ("inspect", "model.compile", "perhaps"),
        ("assemble", "model.seed", "x"),
        ("eval", "backend.workers", 0),
        ("chat", "port", 70_000),
        ("compare", "max_pictures", -1),
        ("convert", "limit", 0),
        ("doctor", "hub", "maybe"),
        ("check", "check.format", "xml"),
    ],
)
def test_each_command_refuses_before_it_reads(command, key, value):
    from importlib import import_module

    config = with_value(composed(command), key, value)
    if command == "convert":
        config = with_value(with_value(config, "input", "nowhere.json"), "out", "nowhere.jsonl")
    with pytest.raises(ConfigError, match=rf"^{key}={value}: (wanted|choose one of) "):
        import_module(f"vlmkit.cli.{command}")._task(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model._target_=nope.Thing"], "model._target_=nope.Thing: it cannot be imported (No module named 'nope')"),
        (["model._target_=collections.OrderedDict"], "made a OrderedDict, wanted a Assembly or WholeCheckpoint"),
        (["model._target_=5"], "model._target_: it refused its settings (Expected a callable"),
        (["model._target_=vlmkit.model.assembly.WholeCheckpoint"], "model.merger_init: no such setting"),
        (
            ["model.attn_implementation=flash", "trainer.accelerator=cpu"],
            "model.attn_implementation=flash needs a CUDA",
        ),
        (["model.kernels=liger"], "model.kernels=liger"),
        (["save.best=val/loss"], "save.best=val/loss: not measured in this run"),
        (["validate.stop_after=3"], "validate.stop_after: say which metric"),
        (["validate.benchmarks=[shape]"], "validate.benchmarks: no benchmark is named 'shape'. Did you mean shapes?"),
        (
            ["trainer=fsdp", "trainer.devices=1", "trainer.strategy._target_=nope.X"],
            "trainer.strategy._target_=nope.X: it",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_by_both_before_anything_is_read(overrides, message, tmp_path, monkeypatch):
    from vlmkit.cli import checking, training

    def unread(*_, **__):
        raise AssertionError("something was read")

    config = composed("train", *overrides)
    with monkeypatch.context() as patch:
        patch.setattr(training, "load_processor", unread)
        refusal = refusal_of(training.wire, config, tmp_path)
    assert message in refusal
    assert "\n" not in refusal
    report = checking.check(composed("check", *overrides, "data.limit=4", "check.decode=false"), tmp_path)
    assert refusal in [told for _, told in report.errors]


def test_an_optimiser_with_other_arguments_is_refused_by_check(tmp_path):
    from vlmkit.cli.checking import check

    more = ["optim.optimizer={_target_: torch.optim.SGD, momentun: 0.9}", "data.limit=4", "check.decode=false"]
    report = check(composed("check", *more), tmp_path)
    assert any("optim.optimizer" in told and "momentun" in told for _, told in report.errors)


@pytest.mark.parametrize("command", ["check", "inspect"])
def test_videos_are_read_as_a_training_would(command, tmp_path, monkeypatch):
    from vlmkit.cli import checking, inspect
    from vlmkit.processing import processor

    write_manifest(tmp_path, 2)
    seen = []
    original = processor.load_processor

    def load(*arguments, **settings):
        seen.append(original(*arguments, **settings))
        return seen[-1]

    more = ["data=llava", f"data.sources=[{tmp_path / 'manifest.json'}]", "data.video_reader=pyav",
            "data.media_timeout_seconds=7", "data.num_workers=0", "log.progress=false"]  # fmt: skip
    config = composed(command, *more)
    if command == "check":
        monkeypatch.setattr(checking, "load_processor", load)
        checking.check(config, tmp_path / "run")
    else:
        monkeypatch.setattr(processor, "load_processor", load)
        monkeypatch.setattr(inspect, "task_overrides", list)
        inspect._inspect(config)
    assert [(one.reading.reader, one.reading.timeout_seconds) for one in seen] == [("pyav", 7)]
