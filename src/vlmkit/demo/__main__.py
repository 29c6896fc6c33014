"""`python -m vlmkit.demo`: the whole way on the embedded defaults, by the commands a user would type."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

STEPS = 400
"""Optimiser steps of the full training: enough for over 90 % on every kind of question."""


def main() -> int:
    """Assemble with proof, stage 1, full training, export, evaluation; exit status 1 where a command fails."""
    parser = argparse.ArgumentParser(prog="python -m vlmkit.demo", description=__doc__)
    parser.add_argument("--out", type=Path, help="where everything goes (default: runs/demo, or the next that is free)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of rows (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the full training (default: %(default)s)")
    chosen = parser.parse_args()
    out: Path = chosen.out or next(place for place in _places() if not place.exists())
    started = time.perf_counter()
    # Threads that wait must not spin: on cores shared with other programs that makes a step many times slower.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    commands = [
        ["assemble", f"out={out}/assembled"],
        ["train", "stage=stage1", "trainer.max_steps=20", f"seed={chosen.seed}", f"run_dir={out}/stage1"],
        [
            "train",
            "stage=full",
            f"init_from={out}/stage1",
            "trainer.max_epochs=null",
            f"trainer.max_steps={chosen.steps}",
            f"seed={chosen.seed}",
            f"run_dir={out}/full",
        ],
        ["eval", f"ckpt={out}/full", "batch_size=30", "max_new_tokens=8"],
    ]
    for name, *overrides in commands:
        print(f"\n$ {shlex.join([f'vlmkit-{name}', *overrides])}", flush=True)
        command = [sys.executable, "-m", f"vlmkit.cli.{name}", *overrides]
        if subprocess.run(command, check=False, env=environment).returncode:
            return 1
    summary = out / "full" / "eval" / "summary.json"
    shapes = json.loads(summary.read_text())["benchmarks"]["shapes"]
    print(
        f"\nDone in {time.perf_counter() - started:.0f} s: {shapes['score']:.1f} % of {shapes['n']} held-out questions right;"
    )
    print(f"a guesser that sees no image gets {shapes['baselines']['text_only_guesser']:.1f} %.")
    print(f"  the model     {out}/full/hf")
    print(f"  its answers   {out}/full/eval/shapes/records.jsonl")
    print(f"  its figures   {summary}")
    print("Next: your own data, in the LLaVA format:")
    print("  vlmkit-train data=llava data.sources=[my.json] data.root=my_images run_dir=runs/mine")
    return 0


def _places() -> Iterator[Path]:
    """`runs/demo`, `runs/demo-2` and so on: what an earlier demo made stays."""
    yield Path("runs/demo")
    yield from (Path(f"runs/demo-{number}") for number in count(2))


if __name__ == "__main__":
    sys.exit(main())
