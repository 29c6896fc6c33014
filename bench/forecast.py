"""What a run predicts before its first step, beside what follows: steps, peak memory, time.

Runs `vlmkit-train` on drawn shapes in processes of their own, with a model larger than the demo's (`bench/step.py`'s), in
a few settings, and compares `forecast.predicted` of their `report.json` with `forecast.followed`.
`python bench/forecast.py --help` for the options.

Printed, and checked (exit status 1 where a target is missed): steps equal, and peak memory within 15 % of what followed.
Time is reported beside it: a machine that is shared keeps no promise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from step import make_model

from vlmkit.demo import tiny_checkpoints
from vlmkit.processing.processor import load_processor

MAX_ERROR = 0.15
RECOMPUTED = [f"model.gradient_checkpointing.{part}=true" for part in ("vision_encoder", "language_model")]
TWO_RANKS = ["trainer.devices=2", "trainer.accelerator=cpu"]
SETTINGS = {
    "joint": ["stage=full"],
    "joint, recomputed": ["stage=full", *RECOMPUTED],
    "joint, 2 micro-batches": ["stage=full", "trainer.accumulate_grad_batches=2"],
    "joint, 2 ranks (DDP)": ["stage=full", "trainer=ddp", *TWO_RANKS],
    "joint, 2 ranks (FSDP)": ["stage=full", "trainer=fsdp", *TWO_RANKS],
    "stage 1": ["stage=stage1"],
    "stage 2, recomputed": ["stage=stage2", "model.gradient_checkpointing.language_model=true"],
    "stage 2, adapters": ["stage=stage2", "model.lora.rank=16"],
}


def main() -> int:
    """Write the model, run every setting, print and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=256, help="of the language model; the rest follows")
    parser.add_argument("--tokens", type=int, default=1024, help="of a pack")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), help="settings to run; all by default")
    parser.add_argument("--quick", action="store_true", help="two settings, small packs, two steps")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.steps, options.only = 512, 2, options.only or ["joint", "joint, 2 ranks (FSDP)"]
    met: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", options.width)
        for number, name in enumerate(options.only or SETTINGS):
            overrides = SETTINGS[name]
            report = run(Path(folder) / str(number), model, options, overrides)
            met.append(judged(name, report))
    return 0 if all(met) else 1


def write_model(directory: Path, width: int) -> Path:
    """A checkpoint between the demo's and a real one."""
    processor = load_processor(tiny_checkpoints().vision_language)
    model = make_model(processor, width=width, depth=8, vocabulary=1024)
    model.save_pretrained(directory)
    processor.save(directory)
    return directory


def run(run_dir: Path, model: Path, options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """Train a few steps; the run's report."""
    command = [
        sys.executable, "-m", "vlmkit.cli.train", "model=qwen3_vl", f"model.path={model}", f"run_dir={run_dir}",
        f"data.tokens_per_batch={options.tokens}", f"trainer.max_steps={options.steps}", "trainer.max_epochs=50",
        "data.num_workers=0", "log.progress=false", "save.every_n_steps=null", *overrides,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((run_dir / "report.json").read_text())


def judged(name: str, report: dict[str, Any]) -> bool:
    """Print what was predicted beside what followed."""
    predicted, followed = report["forecast"]["predicted"], report["forecast"]["followed"]
    error = predicted["peak_bytes"] / followed["peak_bytes"] - 1
    good = abs(error) <= MAX_ERROR and predicted["num_steps"] == report["steps"]
    print(
        f"{name:<22} steps {predicted['num_steps']} of {report['steps']}   "
        f"peak {predicted['peak_bytes'] / 2**20:,.0f} MiB of {followed['peak_bytes'] / 2**20:,.0f} ({error:+.1%}, at most 15 %)   "
        f"time {predicted['seconds']:.1f} s ({predicted['fastest_seconds']:.1f} to {predicted['slowest_seconds']:.1f}) of "
        f"{followed['seconds']:.1f}{'' if good else '   MISSED'}"
    )
    return good


if __name__ == "__main__":
    sys.exit(main())
