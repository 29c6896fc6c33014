"""`vlmkit-compare A B`: two evaluation directories against each other, as a table and a page."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from vlmkit.config import run_command
from vlmkit.errors import ConfigError


def main() -> None:
    """Entry point of the console script."""
    sys.argv[1:] = with_directories(sys.argv[1:])
    run_command("vlmkit-compare", "compare", _task)


def with_directories(arguments: list[str]) -> list[str]:
    """Command line arguments with the two directories as settings: `A B` is `first=A second=B`."""
    if "--cfg" in arguments or "-c" in arguments:  # the word behind it is its own
        return arguments
    plain = [argument for argument in arguments if _is_directory(argument)]
    if len(plain) > 2:
        sys.exit(f"vlmkit-compare: two evaluation directories are compared, not {len(plain)}: {', '.join(plain)}")
    keys = iter(("first", "second"))
    return [f"{next(keys)}={_quoted(argument)}" if argument in plain else argument for argument in arguments]


def _is_directory(argument: str) -> bool:
    """Whether an argument is no setting; the directories of a sweep have an = in their names."""
    return not argument.startswith("-") and ("=" not in argument or Path(argument).is_dir())


def _quoted(text: str) -> str:
    """A value for Hydra's grammar, whatever characters a path has."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _task(config: DictConfig) -> None:
    if config.first is None or config.second is None:
        raise ConfigError("two evaluation directories are compared. Name both: vlmkit-compare runs/a/eval runs/b/eval")
    from vlmkit.evaluation.comparison import compare, read_evaluation, table
    from vlmkit.pages.comparison import write_comparison

    first, second = (read_evaluation(Path(place).expanduser()) for place in (config.first, config.second))
    differences = compare(first, second, seed=config.seed)
    print(f"first   {first.directory}\nsecond  {second.directory}\n\n{table(differences)}")
    out = Path(config.out).expanduser().absolute()
    page = write_comparison(out, first, second, differences, max_pictures=config.max_pictures)
    print(f"\nPage {page}: open {page.as_uri()}")


if __name__ == "__main__":
    main()
