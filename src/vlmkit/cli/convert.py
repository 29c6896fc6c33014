"""`vlmkit-convert`: annotations of other tools into a LLaVA manifest, with an account of every row."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vlmkit.cli.settings import check_settings
from vlmkit.config import build, run_command
from vlmkit.errors import ConfigError

_OURS = ("input", "out", "report")


def main() -> None:
    """Entry point of the console script."""
    run_command("vlmkit-convert", "convert", _task)


def _task(config: DictConfig) -> None:
    for key in _OURS[:2]:
        if OmegaConf.is_missing(config, key):
            raise ConfigError(f"{key} must be given: vlmkit-convert input=annotations.json out=manifest.jsonl")
    check_settings(config, "convert")
    from tqdm import tqdm

    from vlmkit.data.convert.conversion import Conversion, Converted, Refused

    settings = {key: value for key, value in config.items() if key not in _OURS}
    conversion = build(OmegaConf.create(settings), Conversion)

    def told(done: Converted) -> None:
        if config.report:
            place = Path(config.report).expanduser()
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(done.to_json(), indent=1) + "\n")

    with tqdm(desc="rows", unit=" rows", disable=None, file=sys.stderr) as bar:
        try:
            done = conversion.run(config.input, config.out, progress=lambda _: bar.update())
        except Refused as refused:
            told(refused.done)
            raise
    told(done)
    print(done.to_text())
    root = config.root or config.media_dir
    print(f"Next: vlmkit-check data=llava data.sources=[{config.out}]{f' data.root={root}' if root else ''}")


if __name__ == "__main__":
    main()
