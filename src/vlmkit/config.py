"""Where the yaml files are, how one becomes an object, and how a command runs on them.

Besides `cli/` the only importer of hydra and omegaconf: below, everything takes plain typed arguments. Nothing here
imports torch, so `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import difflib
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from vlmkit.errors import ConfigError, VlmkitError

T = TypeVar("T")
RUN_DIR_VARIABLE = "VLMKIT_RUN_DIR"
"""Hands the run directory of the first rank to the ranks it starts: `${now:}` would give each its own."""
TAKEN_OVER_VARIABLE = "VLMKIT_TAKEN_OVER"
"""Tells the ranks that a rank starts which groups were added to its command line by `with_saved_choices`."""


def conf_dir() -> Path:
    """Directory of the yaml files: the wheel's copy if there is one, else the checkout's.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(__file__).resolve().parent
    places = [package / "conf", package.parents[1] / "conf"]
    for place in places:
        if (place / "train.yaml").is_file():
            return place
    raise ConfigError(
        f"No configuration found: neither {places[0]} nor {places[1]} holds train.yaml. Reinstall vlmkit."
    )


def build(node: DictConfig, kind: type[T], where: str = "", /, **runtime: object) -> T:
    """Make the object that `node` describes by its `_target_`; hand `runtime` objects to it untouched.

    Args:
        node: A node of the config, with the `_target_` and its arguments.
        kind: What it must be.
        where: The node's key for messages, where the node was cut out of the config and no longer knows it.
        runtime: Further arguments, made by code.

    Raises:
        ConfigError: an argument is given both by config and by code, is unknown, missing or refused by the
            constructor, or the result is of another kind.
    """
    target = str(node.get("_target_"))
    where = where or str(node._get_full_key(None))  # pyright: ignore[reportPrivateUsage]  (OmegaConf has no public way)
    if missing := _missing(node, where):
        raise ConfigError(f"{', '.join(missing)} must be given: there is no default. Add {missing[0]}=...")
    try:
        factory: Any = instantiate(
            node, _partial_=True, _convert_="all"
        )  # partial first: runtime objects are never merged
    except InstantiationException as error:
        raise ConfigError(_not_made(error, where)) from error
    if clash := sorted(factory.keywords.keys() & runtime.keys()):
        raise ConfigError(f"{target}: {clash} given both by config and by code. Leave it out of the config.")
    _check_plain_types(factory.func, factory.keywords, where)
    try:
        made = factory(**runtime)
    except (TypeError, ValueError) as error:
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            key, keys = (
                _under(where, unknown[1]),
                [_under(where, str(one)) for one in node if one not in ("_target_", unknown[1])],
            )
            raise ConfigError(
                f"{key}: no such setting.{_nearest_key(key, keys)} There are: {', '.join(keys)}."
            ) from error
        told = f"{target.rpartition('.')[2]} refused its settings: {error}"
        raise ConfigError(f"{where}: {told}" if where else told) from error
    if not isinstance(made, kind):
        kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ConfigError(
            f"{_under(where, '_target_')}={target}: it made a {type(made).__name__}, wanted a {kinds}. Choose a _target_ that "
            "makes one."
        )
    return made


def _not_made(error: InstantiationException, where: str) -> str:
    """Hydra's message about a `_target_`, of the node itself or of one within it, in a line that begins with the key."""
    text = str(error)
    inner = re.search(r"full_key: ([\w.]+)", text)
    key = _under(where, inner[1]) if inner and inner[1] != where.rpartition(".")[2] else where
    cause = error.__cause__
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    why = " ".join(str(cause or text.partition(", set env var")[0]).split()).rstrip(".")
    target = re.search(r"target '([^']+)'", text)
    named = f"{key}._target_={target[1]}" if target else f"{key}._target_"
    if isinstance(cause, (ImportError, AttributeError)):
        return f"{named}: it cannot be imported ({why}). Name a class or function by its module, such as {_EXAMPLE_TARGET}."
    return f"{named}: it refused its settings ({why}). Check them."


def _missing(node: DictConfig, where: str) -> list[str]:
    """Full names of the settings without a value, also of one that another setting refers to."""
    try:
        return sorted(_under(where, str(key)) for key in OmegaConf.missing_keys(node))
    except InterpolationToMissingValueError as error:
        return [str(error).splitlines()[0].rpartition(": ")[2]]


def _under(where: str, key: str) -> str:
    """The key's full name: a node that still hangs in its config tells it in full, one cut out tells the last part."""
    return key if not where or key.startswith(f"{where}.") else f"{where}.{key}"


_EXAMPLE_TARGET = "vlmkit.model.assembly.Assembly"
_PLAIN: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}


def _check_plain_types(factory: Any, given: dict[str, object], where: str) -> None:
    """Refuse a setting that is no number (text, boolean, null) where the signature says it is one.

    Raises:
        ConfigError: naming the key, what was found and what is wanted. Arguments of other types are not looked at.
    """
    try:
        hints = get_type_hints(factory.__init__ if isinstance(factory, type) else factory)
    except (NameError, TypeError, AttributeError):  # other people's annotations need not resolve
        return
    for name, value in given.items():
        hint = hints.get(name, object)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if not all(kind in _PLAIN for kind in kinds):
            continue
        fits = type(value) in kinds or (float in kinds and type(value) is int)
        if not fits:
            wanted = " or ".join(_PLAIN[kind] for kind in kinds)
            raise ConfigError(
                f"{_under(where, name)}={value}: wanted {wanted}, got {_PLAIN.get(type(value), 'something else')}."
            )


def options_of(group: str) -> list[str]:
    """Names that can stand behind `group=`, from the files of the group; a file named `_...` is what others share."""
    return sorted(path.stem for path in (conf_dir() / group).glob("[!_]*.yaml"))


def benchmark_nodes(
    names: object, options: DictConfig | None = None, *, where: str = "benchmarks"
) -> dict[str, DictConfig]:
    """Compose `eval/<name>.yaml` for each name and lay `benchmark_options.<name>` over it.

    A name that ends in .yaml is a file of the user's, one that ends in .jsonl a file of questions; the benchmark is
    called as its stem.

    Args:
        names: A list of names, one name, or `all`.
        options: `benchmark_options`: a mapping from a benchmark's name to the keys to change.
        where: Key of `names`, for messages.

    Raises:
        ConfigError: an unknown name, or an option that the benchmark does not have.
    """
    known = options_of("eval")
    plain = OmegaConf.to_container(names) if isinstance(names, ListConfig) else names
    wanted = known if plain == "all" else [plain] if isinstance(plain, str) else list(plain or [])  # type: ignore[arg-type]
    nodes: dict[str, DictConfig] = {}
    for told in map(str, wanted):
        own = told.endswith((".yaml", ".yml", ".jsonl"))
        name = Path(told).stem if own else told
        node = OmegaConf.load(_benchmark_file(told, known, where, own=own))
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise ConfigError(f"{where}: {told} describes no benchmark: it has no _target_. Name a benchmark's yaml.")
        if told.endswith(".jsonl"):
            node.name, node.path = name, told
        for key, value in ((options or {}).get(name) or {}).items():
            if key not in node:
                keys = sorted(str(key) for key in node if key != "_target_")
                raise ConfigError(
                    f"benchmark_options.{name}.{key}: no such option.{_nearest(str(key), keys)} There are: {', '.join(keys)}."
                )
            node[key] = value
        nodes[name] = node
    if stray := sorted(set(map(str, options or {})) - set(nodes)):
        raise ConfigError(
            f"benchmark_options.{stray[0]}: {stray[0]} is not among benchmarks={sorted(nodes)}. Add it there."
        )
    return nodes


def _benchmark_file(told: str, known: list[str], where: str, *, own: bool) -> Path:
    if own:
        if not (path := Path(told).expanduser()).is_file():
            raise ConfigError(
                f"{where}: there is no file {told} (seen from {Path.cwd()}). Give the path of a benchmark's yaml or of a "
                "manifest (JSON Lines), or a name."
            )
        return conf_dir() / "eval" / "_jsonl.yaml" if told.endswith(".jsonl") else path
    if told not in known:
        raise ConfigError(
            f"{where}: no benchmark is named {told!r}.{_nearest(told, known)} There are: {', '.join(known)}. Questions of "
            "your own are named by their file: benchmarks=[mine.jsonl]."
        )
    return conf_dir() / "eval" / f"{told}.yaml"


def run_directory() -> Path:
    """The directory of this run (of this job, in a multirun), the same on every rank."""
    if int(os.environ.get("LOCAL_RANK", "0")) and (handed := os.environ.get(RUN_DIR_VARIABLE)):
        return Path(handed)
    found = Path(HydraConfig.get().runtime.output_dir).resolve()
    os.environ[RUN_DIR_VARIABLE] = str(found)
    return found


def task_overrides() -> list[str]:
    """The overrides the user typed, without those to Hydra itself."""
    return list(HydraConfig.get().overrides.task)


def this_job(command: str, run_dir: Path) -> list[str]:
    """The command line that runs this very job once more, as another rank of it; of a sweep, this job alone.

    Args:
        command: Name of the module in `vlmkit.cli`.
        run_dir: Of this job.
    """
    single = HydraConfig.get().mode == RunMode.RUN
    arguments = sys.argv[1:] if single else task_overrides()
    place = str(run_dir).replace("'", "\\'")
    own = [f"hydra.run.dir='{place}'", "hydra.output_subdir=null"]
    return [sys.executable, "-m", f"vlmkit.cli.{command}", *arguments, *own]


def run_command(name: str, config_name: str, task: Callable[[DictConfig], object]) -> None:
    """Run `task` on the configuration composed from the command line; print user errors without a traceback.

    Exit status: 0; 1 where the user has something to mend; 75 for a run that a signal told to leave and that can be resumed; what Python says for a fault of ours (with traceback).
    """
    if config_name != "train" and not {"-m", "--multirun"}.isdisjoint(sys.argv[1:]):
        _fail(name, f"-m: {name} takes one set of settings. Call it once for each, without -m; vlmkit-train -m sweeps.")
    sys.argv[1:] = [word.removeprefix("+") if word.startswith("+experiment=") else word for word in sys.argv[1:]]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # hydra would print a shortened traceback and swallow ours
    try:
        decorate = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)
        decorate(_told_by_us(task, config_name))()
    except _PastHydra as carried:
        _fail(name, str(carried.error), carried.error.status)
    except VlmkitError as error:
        _fail(name, str(error), error.status)
    except _WRONG_PLACE as error:  # before the task: Hydra makes the run directory
        _fail(name, str(_wrong_place(error)))
    except (HydraException, OmegaConfBaseException) as error:
        _fail(name, str(_explain(error, config_name)))


def _told_by_us(task: Callable[[DictConfig], object], config_name: str) -> Callable[[DictConfig], object]:
    """The task, with a user's error leaving past Hydra, which would put a line of its own above it.

    In a multirun the job must fail in Hydra's eyes too, so there the error takes the usual way.
    """

    @wraps(task)  # hydra reads from the task's module where the command lies
    def told(config: DictConfig) -> object:
        try:
            _refuse_added(config_name)
            return task(config)
        except VlmkitError as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            raise _PastHydra(error) from None
        except _WRONG_PLACE as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            raise _PastHydra(_wrong_place(error)) from error

    return told


_WRONG_PLACE = (IsADirectoryError, NotADirectoryError, FileExistsError, PermissionError)
"""What a path of the user's leads to, wherever it is met."""


def _wrong_place(error: OSError) -> ConfigError:
    """In words; one that names no file is no path of a user's, and keeps its traceback."""
    if error.filename is None:
        raise error
    return ConfigError(f"{error.filename2 or error.filename}: {error.strerror}. Name another place.")


class _PastHydra(BaseException):
    """Carries a user's error through Hydra, which reports and re-raises every `Exception` of a job."""

    def __init__(self, error: VlmkitError) -> None:
        super().__init__(str(error))
        self.error = error


def _end_helpers() -> None:
    """End processes that load before this one ends: one that is only starting then would end in a traceback of its own."""
    for helper in multiprocessing.active_children():
        helper.kill()  # they are deaf to SIGTERM
        helper.join()


def _fail(name: str, message: str, status: int = 1) -> None:
    _end_helpers()
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(status)


def _explain(error: Exception, config_name: str) -> ConfigError:
    """Hydra's message, and what it leads to: the nearest key, or the names that exist."""
    if isinstance(error, OverrideParseException) and "=" not in str(error.override):
        return ConfigError(f"{error.override}: a setting without a value. Write {error.override}=VALUE.")
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override}: not readable as key=value ({str(error.__cause__ or error).splitlines()[0]}). Write a list "
            "as [a,b], a mapping as {a: 1}; put a text with braces, commas or spaces into quotes of its own: \"key='a {b}'\"."
        )
    text = str(error)
    cause = error.__cause__ or error.__context__
    if cause is not None and str(cause) not in text:
        text = f"{text}\n{cause}"
    text = re.sub(r"\n?\s*(full_key|object_type|reference_type)[^\n]*", "", text).strip()
    if match := re.search(r"Could not (?:find|load) '(\w+)/([^']*)'", text):
        group, option = match.groups()
        known = options_of(group)
        return ConfigError(f"{group}={option}: no such option.{_nearest(option, known)} There are: {', '.join(known)}.")
    if match := re.search(r"Could not (?:override|delete from config\.) '([\w./@]+)'", text):
        return ConfigError(f"{match[1]}: no such setting.{_hint(match[1], config_name)}")
    return ConfigError(text)


def _hint(key: str, config_name: str) -> str:
    """What to write instead of a setting that the composed config does not have."""
    group, _, rest = key.partition(".")
    own = list(dict.fromkeys([*_settings(config_name), *sorted(_top_level(config_name))]))
    if (conf_dir() / group).is_dir() and group not in own:
        return f" vlmkit-{config_name} takes no {group}=. There are: {', '.join(_beside('', own))}."
    known = {option: _settings_of(group, option) for option in (options_of(group) if rest else [])}
    if having := [option for option, keys in known.items() if key in keys]:
        having.sort(key=lambda option: len(OmegaConf.load(conf_dir() / group / f"{option}.yaml")))  # the plainest first
        more = f" or one of {len(having) - 1} more that have it (--help lists them)" if len(having) > 1 else ""
        return f" The chosen {group}= does not have it: choose {group}={having[0]}{more}."
    near = _nearest_key(key, [*(name for keys in known.values() for name in keys), *own])
    return near or f" There are: {', '.join(_beside(key, own))}."


def _nearest_key(key: str, known: Iterable[str]) -> str:
    """The settings that were likely meant: alike and in the same place, or with that last word elsewhere, or alike at all."""
    place, _, word = key.rpartition(".")
    last = {name: name.rpartition(".")[2] for name in known}
    beside = {last[name]: name for name in last if name.rpartition(".")[0] == place}
    if words := difflib.get_close_matches(word, beside, n=2, cutoff=0.6):
        return f" Did you mean {' or '.join(beside[word] for word in words)}?"
    if elsewhere := sorted(name for name in last if last[name] == word)[:3]:
        return f" Did you mean {' or '.join(elsewhere)}?"
    there = any(name.startswith(f"{place}.") for name in last)
    return _nearest(word if there else key, last)


def _beside(key: str, known: list[str]) -> list[str]:
    """What stands where a setting was looked for: the keys of the nearest mapping around it that exists."""
    place = key.rpartition(".")[0]
    while place and not any(name.startswith(f"{place}.") for name in known):
        place = place.rpartition(".")[0]
    return [name for name in known if name.rpartition(".")[0] == place]


def _refuse_added(config_name: str) -> None:
    """Refuse `+key=...` where the command has nothing that would read it.

    Raises:
        ConfigError: naming the key.
    """
    known = _top_level(config_name)
    for override in task_overrides():
        key = override.split("=")[0].lstrip("+")
        if override.startswith("+") and key.partition(".")[0] not in known:
            listed = ", ".join(sorted(known))
            raise ConfigError(f"{key}: nothing reads such a setting.{_nearest_key(key, known)} There are: {listed}.")


def _top_level(config_name: str) -> set[str]:
    """Keys and groups that a command's yaml, and those that it begins with, have at the top."""
    content = cast(DictConfig, OmegaConf.load(conf_dir() / f"{config_name}.yaml"))
    found = {str(key) for key in content if key not in ("defaults", "hydra")}
    for entry in content.get("defaults", []):
        if isinstance(entry, DictConfig):
            groups = (str(group).removeprefix("override ").strip("/") for group in entry)
            found |= {group for group in groups if not group.startswith("hydra/")}
        elif entry != "_self_":
            found |= _top_level(str(entry))
    return found


def _settings(config_name: str, *overrides: str) -> list[str]:
    """Dotted names of all settings of a command's config, as composed with `overrides`; none if it has no such group."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            plain = OmegaConf.to_container(compose(config_name, overrides=list(overrides)), resolve=False)
        except HydraException:
            return []
    return _flatten(plain)


def _settings_of(group: str, option: str) -> list[str]:
    """Dotted names of the settings in one file of a group, and in the files of the group that it builds on."""
    path = conf_dir() / group / f"{option}.yaml"
    content = cast(DictConfig, OmegaConf.load(path))
    everywhere = path.read_text(encoding="utf-8").startswith("# @package _global_")
    found = _flatten(OmegaConf.to_container(content, resolve=False), "" if everywhere else f"{group}.")
    shared = [entry for entry in content.get("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    return list(dict.fromkeys([*found, *(name for one in shared for name in _settings_of(group, one))]))


def _flatten(node: object, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    found: list[str] = []
    for key, value in cast("dict[str, object]", node).items():
        if key not in ("_target_", "defaults"):
            found += [f"{prefix}{key}", *_flatten(value, f"{prefix}{key}.")]
    return found


def _nearest(word: str, known: Iterable[str]) -> str:
    """The names that are written almost alike; else those that the word is a part of."""
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(word, names, n=2, cutoff=0.7)
    close = close or [name for name in names if len(word) > 2 and word.lower() in re.split(r"[_.\W]", name.lower())][:3]
    return f" Did you mean {' or '.join(close)}?" if close else ""


def choices() -> dict[str, str]:
    """Which file of each config group this run was composed from."""
    return {group: name for group, name in HydraConfig.get().runtime.choices.items() if "/" not in group and name}


def chosen_by_user(group: str) -> bool:
    """Whether the command line names an option of a group, as in `data=llava`."""
    if group in os.environ.get(TAKEN_OVER_VARIABLE, "").split(","):
        return False
    return any(override.split("=")[0].lstrip("+") == group for override in task_overrides())


def taken_over(config: DictConfig, saved: DictConfig, groups: Iterable[str]) -> DictConfig:
    """This command's config with whole groups taken over from a saved run, unless the command line says otherwise.

    A group the user chose by name stays the user's; of the others, single settings on the command line still win.

    Args:
        config: As composed, with the saved run's options (see `with_saved_choices`).
        saved: The saved run's config, as `save_config` wrote it.
        groups: Names of the groups to take over.

    Raises:
        ConfigError: a group would have something else made than this command's config has.
    """
    kept = [group for group in groups if not chosen_by_user(group)]
    known = {*_targets(config), "vlmkit.model.assembly.WholeCheckpoint"}  # what a run that had init_from itself saved
    for group in kept:
        if foreign := sorted({*_targets(saved[group])} - known):
            raise ConfigError(
                f"init_from: {group} of that run has {foreign[0]}, which is no part of this command's own config, so it is "
                "not called: a config that comes with a run could run any code. Give it on the command line, if you know it: "
                f"{group}._target_=..., or {group}= with an option of yours."
            )
        config[group] = saved[group]
    changed = [override for override in task_overrides() if "=" in override and override.split(".")[0] in kept]
    return OmegaConf.merge(config, OmegaConf.from_dotlist(changed))  # type: ignore[return-value]


def _targets(node: object) -> Iterator[str]:
    """What a config would have called: each `_target_`, and each interpolation, which could become one."""
    if isinstance(node, (DictConfig, ListConfig)):
        node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, dict):
        for key, value in cast(dict[object, object], node).items():
            yield from [str(value)] if key == "_target_" else _targets(value)
    elif isinstance(node, list):
        for value in cast(list[object], node):
            yield from _targets(value)
    elif isinstance(node, str) and "${" in node:
        yield node


def with_saved_choices(arguments: list[str], groups: Iterable[str]) -> list[str]:
    """Command line arguments with the group options of the run that `init_from=` names, where the user gives none.

    So a command composes on what the run was composed on: `data.sources=` of a run on `data=llava` is known, and the
    recipe of another model's file is not mixed in. What was added is kept in the environment, for ranks started by this
    process.
    """
    named = [argument.removeprefix("init_from=") for argument in arguments if argument.startswith("init_from=")]
    swept = named and "," in named[-1] and not {"-m", "--multirun"}.isdisjoint(arguments)
    if not named or swept or os.environ.get(TAKEN_OVER_VARIABLE):  # each job of a sweep over init_from looks for itself
        return arguments
    place = Path(named[-1].strip("'\"")).expanduser()
    options = {"model": "qwen3_vl"}
    if (place / "config.yaml").is_file():
        saved = read_config(place)
        options = {group: str(saved.choices[group]) for group in groups}
        # A path in the place of a name would have a file composed that came with the run.
        options = {group: option for group, option in options.items() if re.fullmatch(r"[\w-]+", option)}
    given = {argument.split("=")[0].lstrip("+") for argument in arguments}
    added = {group: option for group, option in options.items() if group not in given}
    os.environ[TAKEN_OVER_VARIABLE] = ",".join(added)
    return [*arguments, *(f"{group}={option}" for group, option in added.items())]


def save_config(config: DictConfig, run_dir: Path) -> None:
    """Write the resolved config as `config.yaml` and `config.json`, with the options it was composed from."""
    run_dir.mkdir(parents=True, exist_ok=True)
    plain = {**OmegaConf.to_container(config, resolve=True), "choices": choices(), "overrides": task_overrides()}  # type: ignore[dict-item]
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
    (run_dir / "config.json").write_text(json.dumps(plain, indent=1) + "\n")


def read_config(run_dir: Path) -> DictConfig:
    """The config that `save_config` wrote.

    Raises:
        ConfigError: there is none.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir}: no config.yaml, so it is not a run directory. Name the run_dir of a training.")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config
