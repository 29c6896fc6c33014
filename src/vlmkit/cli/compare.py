"""`vlmkit-compare A B`: two evaluations against each other, or the runs of a sweep against the best of them."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from vlmkit.cli.settings import check_settings
from vlmkit.config import run_command
from vlmkit.errors import ConfigError


def main() -> None:
    """Entry point of the console script."""
    sys.argv[1:] = with_directories(sys.argv[1:])
    run_command("vlmkit-compare", "compare", _task)


def with_directories(arguments: list[str]) -> list[str]:
    """Command line arguments with the directories as settings.

    `A` is `sweep=A`, `A B` is `first=A second=B`, `A B C` is `runs=[A,B,C]`.
    """
    if "--cfg" in arguments or "-c" in arguments:  # the word behind it is its own
        return arguments
    plain = [argument for argument in arguments if _is_directory(argument)]
    if len(plain) > 2:
        others = [argument for argument in arguments if argument not in plain]
        return [*others, f"runs=[{','.join(map(_quoted, plain))}]"]
    one_given = any(argument.startswith(("first=", "second=")) for argument in arguments)
    keys = iter(("first", "second") if len(plain) == 2 or one_given else ("sweep",))
    return [f"{next(keys)}={_quoted(argument)}" if argument in plain else argument for argument in arguments]


def _is_directory(argument: str) -> bool:
    """Whether an argument is no setting; the directories of a sweep have an = in their names."""
    return not argument.startswith("-") and ("=" not in argument or Path(argument).is_dir())


def _quoted(text: str) -> str:
    """A value for Hydra's grammar, whatever characters a path has."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _task(config: DictConfig) -> None:
    check_settings(config, "compare")
    if config.sweep is not None or config.runs:
        _against_the_best(config)
    else:
        _two(config)


def _two(config: DictConfig) -> None:
    """One evaluation against another."""
    if config.first is None or config.second is None:
        raise ConfigError(
            "two evaluation directories are compared. Name both: vlmkit-compare runs/a/eval runs/b/eval; or the runs of a sweep: "
            "vlmkit-compare sweep=runs/sweep"
        )
    from vlmkit.evaluation.comparison import compare, read_evaluation, table
    from vlmkit.pages.comparison import write_comparison

    first, second = (read_evaluation(Path(place).expanduser()) for place in (config.first, config.second))
    differences = compare(first, second, seed=config.seed)
    print(f"first   {first.directory}\nsecond  {second.directory}\n\n{table(differences)}")
    out = Path(config.out or _OUT).expanduser().absolute()
    page = write_comparison(out, first, second, differences, max_pictures=config.max_pictures)
    print(f"\nPage {page}: open {page.as_uri()}")


def _against_the_best(config: DictConfig) -> None:
    """Several runs, each against the best of them."""
    if (config.sweep is not None) + bool(config.runs) + (config.first is not None or config.second is not None) > 1:
        raise ConfigError("sweep=, runs= and two directories: give one of the three.")
    from vlmkit.pages.standings import write_standings
    from vlmkit.sweeps.standing import contenders, contenders_of_sweep, standings, text

    if config.sweep is not None:
        sweep = Path(config.sweep).expanduser()
        metric, runs = contenders_of_sweep(sweep, config.metric)
        out, title = sweep / "compare.html", f"Sweep {sweep.name}"
    else:
        metric, runs = contenders([Path(place).expanduser() for place in config.runs], config.metric)
        out, title = Path(_OUT), "Runs"
    found = standings(metric, runs, seed=config.seed)
    print(text(found))
    page = write_standings(Path(config.out or out).expanduser().absolute(), found, title=title)
    print(f"\nPage {page}: open {page.as_uri()}")


_OUT = "runs/compare.html"


if __name__ == "__main__":
    main()
