"""`vlmkit-check`: the overrides of a training run, looked through without training."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from omegaconf import DictConfig

from vlmkit.cli.settings import check_settings, find_faults
from vlmkit.config import run_command, with_saved_choices
from vlmkit.errors import ConfigError


def main() -> None:
    """Entry point of the console script. Exit status: 0 where the run would start, else 1."""
    sys.argv[1:] = with_saved_choices(sys.argv[1:], ("data", "model"))
    run_command("vlmkit-check", "check", _task)


def _task(config: DictConfig) -> None:
    if any(key.startswith("check.") for key in find_faults(config, "check")):
        check_settings(config, "check")  # of other wrong settings the report says what else is wrong
    if config.check.bad_rows is not None and Path(config.check.bad_rows).expanduser().is_dir():
        raise ConfigError(
            f"check.bad_rows={config.check.bad_rows}: this is a directory. Name a file, such as bad.jsonl."
        )
    from vlmkit.cli.checking import check
    from vlmkit.cli.quiet import hush

    hush()
    with contextlib.redirect_stdout(sys.stderr):  # standard output is the report's alone
        report = check(config, Path(str(config.run_dir)).expanduser().absolute())
    print(json.dumps(report.to_json(), indent=1) if config.check.format == "json" else report.to_text())
    sys.stdout.flush()
    if not report.starts:
        sys.exit(1)


if __name__ == "__main__":
    main()
