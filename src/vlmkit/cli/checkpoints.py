"""The model that a command asks: of a run, a Hugging Face directory, or as the config assembles it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from vlmkit.errors import CheckpointError


def model_directory(config: DictConfig, *, assembled: Path) -> Path:
    """The Hugging Face directory to ask: of a run, or as given; without `ckpt`, the model the config assembles.

    Args:
        config: With `ckpt` and the group `model`.
        assembled: Where a model goes that is assembled for the occasion.

    Raises:
        CheckpointError: there is none.
    """
    if config.ckpt is None:
        return _assembled(config, assembled)
    place = Path(config.ckpt).expanduser()
    exported = sorted(place.glob("checkpoints/hf_step-*"), key=lambda path: int(path.name.split("-")[1]))
    for directory in (place / "hf", *reversed(exported), place):
        if (directory / "config.json").is_file() and not (directory / "config.yaml").is_file():
            return directory
    raise CheckpointError(
        f"ckpt={config.ckpt}: no model there. Name a finished run directory or a Hugging Face directory."
    )


def _assembled(config: DictConfig, directory: Path) -> Path:
    import torch

    from vlmkit.cli.training import model_source
    from vlmkit.model.checkpoint import save_hf
    from vlmkit.processing.processor import load_processor

    source = model_source(config.model)
    vlm = source.build(dtype=torch.float32)
    print(f"No ckpt given: the model as assembled, untrained, in {directory}.")
    processor = load_processor(source.processor_source)
    return save_hf(model=vlm.model, processor=processor, directory=directory, provenance=vlm.provenance)
