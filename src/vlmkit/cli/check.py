"""`vlmkit-check`: everything a training run would meet, looked at without training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from omegaconf import DictConfig

from vlmkit.config import run_command, with_saved_choices
from vlmkit.errors import ConfigError

FORMATS = ("text", "json")


def main() -> None:
    """Entry point of the console script. Exit status 1 where the run would fail."""
    sys.argv[1:] = with_saved_choices(sys.argv[1:], ("data", "model"))
    run_command("vlmkit-check", "check", _task)


def _task(config: DictConfig) -> None:
    settings = config.check
    if settings.format not in FORMATS:
        raise ConfigError(f"check.format={settings.format}: choose one of {', '.join(FORMATS)}.")
    if settings.decode is not None and (type(settings.decode) is not int or settings.decode < 0):
        raise ConfigError(f"check.decode={settings.decode}: wanted a whole number, or null for all rows.")
    run_dir = Path(config.run_dir).expanduser().absolute()
    from vlmkit.cli.checking import check  # torch, transformers and lightning load here, not for --help
    from vlmkit.cli.quiet import hush

    hush()
    report = check(config, run_dir)
    print(json.dumps(report.to_json(), indent=1, default=str) if settings.format == "json" else report.to_text())
    if report.errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
