"""`vlmkit-assemble`: put a model together out of parts, prove it, save it with its report."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from vlmkit.cli.settings import check_settings
from vlmkit.config import conf_dir, run_command
from vlmkit.errors import ConfigError


def main() -> None:
    """Entry point of the console script."""
    run_command("vlmkit-assemble", "assemble", _task)


def _task(config: DictConfig) -> None:
    check_settings(config, "assemble")
    import torch

    from vlmkit.cli.quiet import hush
    from vlmkit.cli.training import model_source
    from vlmkit.model.assembly import Assembly
    from vlmkit.model.checkpoint import check_replaceable, prove_export, save_hf
    from vlmkit.processing.processor import load_processor

    hush()
    source = model_source(config.model)
    if not isinstance(source, Assembly):
        raise ConfigError(
            "model: this is a whole checkpoint, there is nothing to assemble. Choose a model= made of parts."
        )
    out = Path(config.out).expanduser().absolute()
    check_replaceable(out)  # before the long part
    vlm = source.build(dtype=source.stored_dtype() if config.dtype == "auto" else getattr(torch, config.dtype))
    source.prove(vlm)
    assert vlm.report is not None
    processor = load_processor(vlm.processor_source)
    save_hf(model=vlm.model, processor=processor, directory=out, provenance=vlm.provenance)
    prove_export(out, model=vlm.model, processor=processor)
    (out / "report.txt").write_text(vlm.report.to_text())
    (out / "report.json").write_text(vlm.report.to_json())
    num_parameters = sum(parameter.numel() for parameter in vlm.model.parameters())
    print(vlm.report.to_text().split("\nConfig fields", 1)[0].rstrip())
    print(f"\n{num_parameters:,} parameters in {out}; where each field and tensor came from: {out / 'report.txt'}")
    print(" ".join([f"Next: vlmkit-train init_from={out}", *_recipe(config.optim)]))


def _recipe(optim: DictConfig) -> list[str]:
    """What the model's file asks of the optimiser: `init_from=` names weights, and no recipe comes along with them."""
    usual = cast(DictConfig, OmegaConf.load(conf_dir() / "optim" / "finetune.yaml"))
    return [f"optim.{key}={value}" for key, value in optim.items() if value != usual[key]]


if __name__ == "__main__":
    main()
