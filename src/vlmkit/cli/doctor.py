"""`vlmkit-doctor`: versions, devices, kernels, video readers, disk and hub of this machine; trains and changes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from omegaconf import DictConfig

from vlmkit.cli.settings import check_settings
from vlmkit.config import run_command
from vlmkit.errors import ConfigError


def main() -> None:
    """Entry point of the console script. Exit status: 0 where vlmkit can run, else 1."""
    run_command("vlmkit-doctor", "doctor", _task)


def _task(config: DictConfig) -> None:
    check_settings(config, "doctor")
    directory = Path(str(config.directory)).expanduser().absolute()
    if not directory.is_dir():
        raise ConfigError(
            f"directory={config.directory}: there is no such directory. Name one that runs can be written to."
        )
    from vlmkit.cli.doctoring import examine

    examination = examine(directory, measure=config.measure, hub=config.hub)
    print(json.dumps(examination.to_json(), indent=1) if config.format == "json" else examination.to_text())
    sys.stdout.flush()
    if not examination.sound:
        sys.exit(1)


if __name__ == "__main__":
    main()
