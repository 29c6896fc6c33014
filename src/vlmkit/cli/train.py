"""`vlmkit-train`: assemble or load a model, train a stage of it, export it."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from vlmkit.config import run_command, run_directory, with_saved_choices


def main() -> None:
    """Entry point of the console script."""
    sys.argv[1:] = with_saved_choices(sys.argv[1:], ("data", "model"))
    run_command("vlmkit-train", "train", _task)


def _task(config: DictConfig) -> float | None:
    run_dir = run_directory()
    from vlmkit.cli.quiet import hush
    from vlmkit.cli.training import train  # torch, transformers and lightning load here, not for --help

    hush()
    train(config, run_dir)
    from vlmkit.sweeps.result import value_of

    return value_of(run_dir, config.sweep.metric or config.save.best)


if __name__ == "__main__":
    main()
