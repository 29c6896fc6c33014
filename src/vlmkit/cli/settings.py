"""What each setting may be: a command refuses every wrong one, by key and all at once, before anything is read.

The constructors below `cli/` refuse wrong values as well, for whoever calls them from Python. This table is for the command
line: it also holds what has no constructor, and what a constructor would only notice after the data are read.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from vlmkit.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Attributes:
        wanted: In words, to follow "wanted".
        accepts: Whether a value may be.
        choices: The words that it may be, where only some may.
    """

    wanted: str
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def __or__(self, other: Rule) -> Rule:
        """What either of two rules accepts."""
        return Rule(
            f"{self.wanted}{', or' if other is NULL else ' or'} {other.wanted}",
            lambda value: self.accepts(value) or other.accepts(value),
            (*self.choices, *other.choices),
        )

    def fault(self, key: str, value: object) -> str:
        """The message about a value that may not be."""
        near = difflib.get_close_matches(str(value).lower(), self.choices, n=1, cutoff=0.4)
        meant = f" Did you mean {near[0]}?" if near else ""
        if type(value) in (int, float) and not self.choices and self.accepts(str(value)):
            meant = f" Quote a number that is meant as a text: \"{key}='{value}'\"."
        verb = "choose" if self.wanted.startswith("one of") else "wanted"
        return f"{key}={_shown(value)}: {verb} {self.wanted}.{meant}"


def _shown(value: object) -> str:
    """A value as it is written on a command line."""
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else str(value)
    )


def whole(least: int, most: int | None = None) -> Rule:
    """A whole number; neither a text nor true or false is one."""
    wanted = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    return Rule(wanted, lambda value: type(value) is int and least <= value and (most is None or value <= most))


def number(
    least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Rule:
    """A finite number within bounds; `above` and `below` are not reached."""
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("of at least", least), ("above", above), ("of at most", most), ("below", below))
        if math.isfinite(bound)
    ]
    return Rule(
        " ".join(["a number", " and ".join(bounds)]).rstrip(),
        lambda value: (
            type(value) in (int, float) and math.isfinite(value) and least <= value <= most and above < value < below
        ),
    )


def choice(*words: str) -> Rule:
    """One of some words."""
    return Rule(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words, words)


def list_of(entry: Rule, wanted: str) -> Rule:
    """A list of entries that a rule accepts; a text is none."""
    return Rule(wanted, lambda value: isinstance(value, list) and all(map(entry.accepts, cast("list[object]", value))))


NULL = Rule("null", lambda value: value is None)
FLAG = Rule("true or false", lambda value: type(value) is bool, ("true", "false"))
TEXT = Rule("a text", lambda value: isinstance(value, str) and value.strip() != "")
ANY_TEXT = Rule("a text", lambda value: isinstance(value, str))
PATH = Rule("a path", TEXT.accepts)
MAPPING = Rule("a mapping such as {a: 1}", lambda value: isinstance(value, dict))
NAMES = list_of(TEXT, "a list of names such as [a,b]")
PATHS = PATH | list_of(PATH, "a list of paths")
SEED = whole(0, 2**32 - 1)
STEPS = whole(1)
DTYPE = choice("auto", "float32", "bfloat16", "float16")
ERROR_OR_SKIP = choice("error", "skip")
METRIC = TEXT | NULL


def _same(rule: Rule, *keys: str) -> dict[str, Rule]:
    return dict.fromkeys(keys, rule)


_ENDPOINT = {
    **_same(TEXT, "base_url", "model"),
    "api_key_env": TEXT | NULL,
    "timeout_seconds": number(above=0),
    "retries": whole(0),
    "retry_seconds": number(0),
    "concurrency": whole(1),
    "extra_body": MAPPING,
}
_MODEL: dict[str, Rule] = {
    "model.path": PATH,
    **_same(PATH | NULL, "model.vision_encoder", "model.language_model", "model.template", "model.processor"),
    "model.merger_init": choice("crop", "random"),
    "model.seed": whole(0),
    "model.prove": FLAG,
    "model.attn_implementation": choice("auto", "flash4", "flash3", "flash", "varlen", "sdpa"),
    **_same(FLAG, "model.gradient_checkpointing.vision_encoder", "model.gradient_checkpointing.language_model"),
    "model.compile": FLAG,
    "model.kernels": choice("torch", "liger"),
    "model.lora.rank": whole(0),
    "model.lora.alpha": number(above=0),
    "model.lora.dropout": number(0, below=1),
    **_same(NAMES, "model.lora.vision_encoder", "model.lora.merger", "model.lora.language_model"),
}
_OPTIM: dict[str, Rule] = {
    "optim.lr": number(0),
    **_same(number(0) | NULL, "optim.lr_vision_encoder", "optim.lr_merger", "optim.lr_language_model"),
    "optim.layer_decay": number(above=0, most=1),
    "optim.weight_decay": number(0),
    **_same(number(0, below=1), "optim.beta1", "optim.beta2"),
    "optim.eps": number(0),
    "optim.fp32_masters": FLAG,
    "optim.optimizer": MAPPING | NULL,
    "optim.schedule": choice("cosine", "linear", "constant"),
    **_same(number(0, 1), "optim.warmup_ratio", "optim.min_lr_ratio"),
}
_DATA: dict[str, Rule] = {
    "data.name": TEXT | NULL,
    "data.sources": list_of(PATH | MAPPING, "a list of manifests such as [train.json]"),
    "data.root": PATH | NULL,
    "data.cache_dir": PATH,
    **_same(FLAG, "data.allow_absolute_paths", "data.heaviest_first"),
    **_same(
        whole(1) | NULL,
        "data.limit", "data.image_min_pixels", "data.image_max_pixels", "data.video_min_pixels",
        "data.video_max_pixels", "data.video_max_frames", "data.max_tokens", "data.batch_size",
        "data.tokens_per_batch", "data.patches_per_batch",
    ),
    **_same(number(above=0) | NULL, "data.video_fps", "data.media_timeout_seconds"),
    "data.video_reader": choice("auto", "decord", "torchcodec", "pyav"),
    "data.overlong": choice("error", "drop", "shrink_media", "drop_turns"),
    "data.on_bad_row": ERROR_OR_SKIP,
    "data.on_bad_media": choice("error", "mask"),
    "data.max_bad_media": whole(0) | NULL,
    "data.max_bad_rows": number(0, 1) | whole(0) | NULL,
    "data.order": choice("shuffled", "grouped", "sequential"),
    "data.pixels": choice("uint8", "float32"),
    "data.num_workers": whole(0) | NULL,
    "data.seed": whole(0),
    "data.validation": number(above=0, below=1) | PATH | NULL,
}  # fmt: skip
_TRAINER: dict[str, Rule] = {
    "trainer.accelerator": choice("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.devices": whole(1)
    | Rule("-1 for all", lambda value: value == -1 and type(value) is int)
    | choice("auto")
    | list_of(whole(0), "a list of device numbers"),
    "trainer.num_nodes": whole(1),
    "trainer.strategy": choice("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
    | Rule("a mapping with _target_", lambda value: isinstance(value, dict) and "_target_" in value),
    "trainer.strategy.reduce_every_micro_batch": FLAG,
    "trainer.strategy.timeout_minutes": number(above=0),
    "trainer.precision": choice("32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true")
    | Rule(
        "one of 16, 32, 64, bf16", lambda value: str(value) in ("16", "32", "64", "bf16") and type(value) in (int, str)
    ),
    **_same(whole(1) | NULL, "trainer.max_epochs", "trainer.max_steps"),
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.gradient_clip_val": number(0) | NULL,
}
_TRAIN: dict[str, Rule] = {
    "run_dir": PATH,
    **_same(PATH | NULL, "init_from", "resume_from"),
    "init_allow": list_of(
        choice("assembly", "template", "tokenizer", "pixel_limits"),
        "a list of some of assembly, template, tokenizer, pixel_limits, such as [pixel_limits]",
    ),
    "resume_allow": list_of(
        choice("optim", "schedule", "average", "precision"),
        "a list of some of optim, schedule, average, precision, such as [optim]",
    ),
    "seed": SEED,
    "save.every_n_steps": STEPS | NULL,
    "save.every_minutes": number(above=0) | NULL,
    "save.keep": whole(0),
    "save.best": METRIC,
    "validate.every_n_steps": STEPS | NULL,
    "validate.benchmarks": NAMES,
    "validate.max_samples": whole(1) | NULL,
    **_same(whole(1), "validate.batch_size", "validate.max_new_tokens"),
    "validate.samples": whole(0),
    "validate.stop_after": whole(1) | NULL,
    "guard.on_nonfinite": ERROR_OR_SKIP,
    "guard.max_skipped": whole(0),
    "guard.spike_window": whole(20),
    "guard.spike_threshold": number(above=0),
    "log.every_n_steps": STEPS,
    "log.progress": FLAG,
    "sweep.metric": METRIC,
    **_same(FLAG, "freeze.vision_encoder", "freeze.merger", "freeze.language_model"),
    "callbacks.average.decay": number(above=0, below=1),
    "callbacks.average.export": FLAG,
    **_same(whole(1), "callbacks.forecast.packs", "callbacks.forecast.rounds", "callbacks.receipt.steps_with_media"),
    **_same(PATH, "logger.csv.save_dir", "logger.tensorboard.save_dir", "logger.wandb.save_dir"),
    **_same(TEXT | NULL, "logger.csv.name", "logger.wandb.name", "logger.mlflow.run_name", "logger.wandb.project"),
    **_same(ANY_TEXT | whole(0) | NULL, "logger.csv.version", "logger.tensorboard.version"),
    **_same(TEXT, "logger.tensorboard.name", "logger.mlflow.experiment_name"),
    **_same(PATH | NULL, "logger.mlflow.tracking_uri", "logger.mlflow.artifact_location"),
    **_MODEL,
    **_OPTIM,
    **_DATA,
    **_TRAINER,
}
_FORMAT = choice("text", "json")
RULES: dict[str, dict[str, Rule]] = {
    "train": _TRAIN,
    "check": {
        **_TRAIN,
        "check.format": _FORMAT,
        "check.limit": whole(1) | NULL,
        "check.bad_rows": PATH | NULL,
        "check.decode": FLAG | whole(1),
        "check.forecast": FLAG | NULL,
    },
    "inspect": {
        **_TRAIN,
        "inspect.out": PATH,
        "inspect.num_samples": whole(1),
        "inspect.pick": choice("first", "random", "longest"),
        "inspect.rows": list_of(whole(1) | TEXT, "a list such as [3,17] or ['train.json:17']") | whole(1) | TEXT | NULL,
        "inspect.num_packs": whole(0),
    },
    "assemble": {**_MODEL, **_OPTIM, "out": PATH, "dtype": DTYPE},
    "eval": {
        **_MODEL,
        **_OPTIM,
        **_same(PATH | NULL, "ckpt", "answers", "output_dir", "data_root"),
        "benchmarks": NAMES | TEXT | NULL,
        "benchmark_options": MAPPING,
        "max_samples_per_benchmark": whole(1) | NULL,
        **_same(whole(1), "batch_size", "devices", "max_new_tokens"),
        "protocol": choice("house", "paper", "lmms-eval", "vlmevalkit") | NULL,
        "prompt_suffix": ANY_TEXT | NULL,
        "seed": whole(0),
        "use_llm_judge": FLAG | choice("later"),
        **_same(FLAG, "rescore", "verbose", "progress"),
        "report_pictures": whole(0),
        **{f"judge.{key}": rule for key, rule in _ENDPOINT.items()},
        "judge.temperature": number(0) | NULL,
        "judge.max_tokens": whole(1) | NULL,
        "judge.rereads": whole(0),
        **_same(number(0) | NULL, "judge.input_price", "judge.output_price"),
        **{f"backend.{key}": rule for key, rule in _ENDPOINT.items()},
        "backend.device": TEXT,
        "backend.dtype": DTYPE,
        **_same(whole(1), "backend.workers", "backend.tensor_parallel_size", "backend.video_frames"),
        "backend.video": choice("frames", "video_url"),
        "backend.max_model_len": whole(1) | NULL,
        "backend.gpu_memory_utilization": number(above=0, most=1),
        **_same(whole(0), "backend.max_images", "backend.max_videos"),
    },
    "compare": {
        **_same(PATH | NULL, "first", "second", "sweep", "out"),
        "runs": list_of(PATH, "a list of directories"),
        "metric": METRIC,
        "max_pictures": whole(0),
        "seed": whole(0),
    },
    "convert": {
        **_same(PATH, "input", "out", "cache_dir"),
        **_same(PATH | NULL, "annotations", "root", "media_dir", "report"),
        "format": choice("auto", "messages", "sharegpt", "qa", "coco", "vqa2"),
        **_same(
            TEXT | NULL,
            "fields.id", "fields.image", "fields.video", "fields.question", "fields.answer", "fields.system",
            "fields.messages", "image",
        ),
        "question": TEXT,
        "allow_absolute_paths": FLAG,
        "on_bad_row": ERROR_OR_SKIP,
        "limit": whole(1) | NULL,
    },
    "chat": {
        **_MODEL,
        **_OPTIM,
        "ckpt": PATH | NULL,
        **_same(PATHS | NULL, "image", "video"),
        **_same(ANY_TEXT | NULL, "question", "system"),
        "max_new_tokens": whole(1),
        "device": TEXT,
        "dtype": DTYPE,
        "serve": FLAG,
        "port": whole(0, 65535),
    },
    "doctor": {"format": _FORMAT, **_same(FLAG, "measure", "hub"), "directory": PATH},
}  # fmt: skip
"""By command and key. Options of single benchmarks and of sweepers and launchers are held by their constructors."""


def check_settings(config: DictConfig, command: str) -> None:
    """Refuse every setting that its rule does not accept.

    Raises:
        ConfigError: a line for each, with the key, what was found and what is wanted.
    """
    if wrong := find_faults(config, command):
        raise ConfigError("\n".join(wrong.values()))


def find_faults(config: DictConfig, command: str) -> dict[str, str]:
    """The message about each setting that its rule does not accept, by key.

    A setting that the chosen groups do not have, or that has no value yet, is left to what is made of it.
    """
    faults: dict[str, str] = {}
    for key, rule in RULES[command].items():
        try:
            if not _is_given(config, key):
                continue
            value = OmegaConf.select(config, key)
            plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except InterpolationToMissingValueError:
            continue
        except OmegaConfBaseException as error:
            faults[key] = f"{key}: {str(error).splitlines()[0]}."
            continue
        if not rule.accepts(plain):
            faults[key] = rule.fault(key, plain)
    return faults


def _is_given(config: DictConfig, key: str) -> bool:
    """Whether a key is there and has a value, also where that refers to another one."""
    place, _, name = key.rpartition(".")
    node = OmegaConf.select(config, place) if place else config
    return isinstance(node, DictConfig) and name in list(node) and not OmegaConf.is_missing(node, name)
