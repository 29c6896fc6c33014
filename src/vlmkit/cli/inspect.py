"""`vlmkit-inspect`: a page of what the model would be trained on, from the settings of a training run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vlmkit.cli.settings import check_settings
from vlmkit.config import build, run_command, task_overrides, with_saved_choices
from vlmkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from vlmkit.data.datamodule import PackedDataModule
    from vlmkit.data.judging import OnBadRow
    from vlmkit.pages.inspection import Inspection


def main() -> None:
    """Entry point of the console script."""
    sys.argv[1:] = with_saved_choices(sys.argv[1:], ("data", "model"))
    run_command("vlmkit-inspect", "inspect", _task)


def _task(config: DictConfig) -> None:
    check_settings(config, "inspect")
    if Path(config.inspect.out).expanduser().is_dir():
        raise ConfigError(f"inspect.out={config.inspect.out}: this is a directory. Name a file, such as page.html.")
    from vlmkit.cli.quiet import hush
    from vlmkit.pages.inspection import write_inspection

    hush()
    inspection = _inspect(config)
    path = write_inspection(inspection, Path(config.inspect.out).expanduser().absolute())
    print(describe(inspection))
    print(f"Page {path} ({path.stat().st_size / 2**20:.1f} MiB, one file): open {path.as_uri()}")


def _inspect(config: DictConfig) -> Inspection:
    """Count, judge and plan as a training run would; bad rows are shown instead of stopping."""
    from vlmkit.cli.training import model_source, with_starting_weights
    from vlmkit.cli.validating import make_data
    from vlmkit.model.freeze import FreezePolicy
    from vlmkit.pages.inspection import Inspection
    from vlmkit.processing.processor import load_processor

    config = with_starting_weights(config)
    source = model_source(config.model)
    data = make_data(config.data)
    freeze = build(config.freeze, FreezePolicy)
    processor = load_processor(source.processor_source, budget=data.budget, reading=data.reading)
    policies = (data.on_bad_row, data.max_bad_rows, data.overlong)
    data.on_bad_row, data.max_bad_rows = "skip", None
    data.overlong = "drop" if data.overlong == "error" else data.overlong
    trainer = config.trainer
    try:
        data.prepare(
            processor=processor,
            num_epochs=trainer.max_epochs,
            max_packs=None if trainer.max_steps is None else trainer.max_steps * trainer.accumulate_grad_batches,
            require_media=freeze.vision_encoder and freeze.language_model,
        )
    except DataError as error:
        if error.reason != "no_rows":
            raise
    return Inspection(
        data=data,
        processor=processor,
        rows=_rows(config.inspect, data),
        num_packs=config.inspect.num_packs,
        stops=why_it_stops(data, *policies),
        settings={
            "Model": str(source.processor_source),
            "Trained parts": ", ".join(name for name, frozen in vars(freeze).items() if not frozen) or "none",
            "Overrides": " ".join(task_overrides()) or "none",
        },
    )


def _rows(settings: DictConfig, data: PackedDataModule) -> list[int]:
    from vlmkit.pages.choosing import find_rows, pick_rows

    if settings.rows is not None:
        wanted = [settings.rows] if isinstance(settings.rows, int | str) else list(settings.rows)
        return find_rows(data.index, [_number_or_text(one) for one in wanted])
    return pick_rows(data.index, pick=settings.pick, num_samples=settings.num_samples, seed=data.seed)


def _number_or_text(wanted: object) -> int | str:
    if isinstance(wanted, bool) or not isinstance(wanted, int | str):
        raise ConfigError(
            f"inspect.rows: {wanted!r} is neither a row number nor FILE:ROW. Give such as 17 or train.json:17."
        )
    return wanted


def why_it_stops(data: PackedDataModule, on_bad_row: OnBadRow, max_bad_rows: float | None, overlong: str) -> str:
    """Why a training run with these settings would end before it trains; "" where it would not."""
    from vlmkit.data.judging import OVER_LONG, TEXT_ONLY, TRAINED, refusal_of_bad_rows

    counts = data.judgement.counts()
    bad = sum(count for word, count in counts.items() if word not in (TRAINED, TEXT_ONLY, OVER_LONG))
    reasons: list[str] = []
    if bad and on_bad_row == "error":
        reasons.append(f"{_rows_are(bad)} of no use and data.on_bad_row=error")
    elif refusal_of_bad_rows(bad, len(data.index), on_bad_row=on_bad_row, max_bad_rows=max_bad_rows):
        reasons.append(f"{_rows_are(bad)} of no use, more than data.max_bad_rows={max_bad_rows}")
    if (long := counts.get(OVER_LONG, 0)) and overlong == "error":
        reasons.append(f"{_rows_are(long)} longer than data.max_tokens={data.max_tokens} and data.overlong=error")
    if not counts.get(TRAINED):
        reasons.append("no row is left to train on")
    return f"A training run with these settings would stop before it trains: {'; '.join(reasons)}." if reasons else ""


def _rows_are(count: int) -> str:
    return "1 row is" if count == 1 else f"{count} rows are"


def describe(inspection: Inspection) -> str:
    """What became of the rows, in a line or two."""
    counts = inspection.data.judgement.counts()
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    lines = [
        f"Data {inspection.data.name}: {len(inspection.data.index)} rows read ({told}); {len(inspection.rows)} shown."
    ]
    return "\n".join([*lines, *([inspection.stops] if inspection.stops else [])])


if __name__ == "__main__":
    main()
