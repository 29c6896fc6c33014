"""`vlmkit-check`: the overrides of a training run, looked through without training."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from omegaconf import DictConfig

from vlmkit.config import run_command, with_saved_choices
from vlmkit.errors import ConfigError

FORMATS = ("text", "json")


def main() -> None:
    """Entry point of the console script. Exit status: 0 where the run would start, else 1."""
    sys.argv[1:] = with_saved_choices(sys.argv[1:], ("data", "model"))
    run_command("vlmkit-check", "check", _task)


def _task(config: DictConfig) -> None:
    _check_settings(config.check)
    from vlmkit.cli.checking import check
    from vlmkit.cli.quiet import hush

    hush()
    with contextlib.redirect_stdout(sys.stderr):  # standard output is the report's alone
        report = check(config, Path(config.run_dir).expanduser().absolute())
    print(json.dumps(report.to_json(), indent=1) if config.check.format == "json" else report.to_text())
    sys.stdout.flush()
    if not report.starts:
        sys.exit(1)


def _check_settings(settings: DictConfig) -> None:
    """Refuse what is none of the choices, before anything is loaded.

    Raises:
        ConfigError: naming the key.
    """
    if settings.format not in FORMATS:
        raise ConfigError(f"check.format={settings.format}: choose one of {', '.join(FORMATS)}.")
    if settings.limit is not None and (type(settings.limit) is not int or settings.limit < 1):
        raise ConfigError(f"check.limit={settings.limit}: wanted a whole number of at least 1, or null.")
    if settings.bad_rows is not None and (
        type(settings.bad_rows) is not str or Path(settings.bad_rows).expanduser().is_dir()
    ):
        raise ConfigError(f"check.bad_rows={settings.bad_rows}: wanted a file to write, such as bad.jsonl, or null.")
    if type(settings.decode) is not bool and (type(settings.decode) is not int or settings.decode < 1):
        raise ConfigError(f"check.decode={settings.decode}: wanted true, false or a number of rows.")
    if settings.forecast is not None and type(settings.forecast) is not bool:
        raise ConfigError(f"check.forecast={settings.forecast}: wanted true, false or null.")


if __name__ == "__main__":
    main()
