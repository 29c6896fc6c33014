"""`vlmkit-export`: turn any checkpoint into a Hugging Face directory, proved by reopening it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from vlmkit.cli.checkpoints import locate_checkpoint
from vlmkit.config import run_command
from vlmkit.errors import ConfigError

CHOICES = {
    "weights": ("auto", "last", "average", "best"),
    "dtype": ("auto", "bfloat16", "float16", "float32"),
    "lora": ("merged", "adapter"),
}


def main() -> None:
    """Entry point of the console script."""
    run_command("vlmkit-export", "export", _task)


def _task(config: DictConfig) -> None:
    for key, known in CHOICES.items():
        if config[key] not in known:
            raise ConfigError(f"{key}={config[key]}: choose one of {', '.join(known)}.")
    if config.ckpt is None:
        raise ConfigError("ckpt must be given: there is no default. Add ckpt=RUN or ckpt=RUN/checkpoints/step-N.ckpt.")
    location = locate_checkpoint(config.ckpt)
    out = Path(config.out).expanduser().absolute()
    if location.checkpoint is None and (config.weights != "auto" or config.lora != "merged"):
        key = "weights" if config.weights != "auto" else "lora"
        raise ConfigError(
            f"{key}={config[key]}: {location.directory} is an exported model, which holds one set of plain weights. Name a "
            "checkpoint of the run."
        )
    if location.checkpoint is None and out == location.directory.absolute():
        raise ConfigError(f"out={config.out}: this is the model itself. Name another directory.")
    from vlmkit.cli.exporting import export_checkpoint, export_directory
    from vlmkit.cli.quiet import hush

    hush()
    if location.checkpoint is None:
        export_directory(location.directory, out, dtype=config.dtype)
    else:
        adapter = config.lora == "adapter"
        export_checkpoint(location.checkpoint, out, weights=config.weights, dtype=config.dtype, adapter=adapter)
    if config.lora == "adapter":
        print(f"{out}: adapters of {location.checkpoint}, loaded again with PEFT: same tensors, logits and text.")
        return
    print(
        f"{out}: the model of {location.checkpoint or location.directory}, reopened with plain transformers: same tensors, "
        f"logits and text.\nNext: vlmkit-eval ckpt={out}"
    )


if __name__ == "__main__":
    main()
