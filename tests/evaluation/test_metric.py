"""Figures of two ranks are those of one, corpus-like headline figures and uneven shares included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.training.conftest import environment
from vlmkit.evaluation.metric import BenchmarkFigures

RANKS = """
import json, os, sys
import torch.distributed as dist
from tests.evaluation.test_metric import Drawn, RECORDS
from vlmkit.evaluation.metric import BenchmarkFigures

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
metric = BenchmarkFigures(Drawn())
for place in (range(0, 5) if rank else range(5, len(RECORDS))):
    metric.update([place], [RECORDS[place]])
metric.update([7], [RECORDS[7]])  # both ranks have this one
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(metric.compute(), file)
dist.destroy_process_group()
"""


class Drawn:
    name, metric, protocol, source = "drawn", "ordered", "lmms-eval", "here"
    unit, judge, resampled = "points", "no", True

    def figures(self, records):
        return {"ordered": sum(place * record["score"] for place, record in enumerate(records))}

    def baselines(self):
        return {}


RECORDS = [
    {
        "id": f"é{n}", "answer": "line\nof its own\u2028and another", "extracted": None, "expected": "x", "tokens": 1,
        "score": float(n % 3 == 0), "outcome": "right" if n % 3 == 0 else "unparsed", "seconds": 0.1,
        "category": "a" if n % 2 else "b", "labels": {"task": str(n % 4)}, "cluster": f"c{n // 2}",
    }
    for n in range(12)
]  # fmt: skip


def test_two_ranks_have_the_figures_of_one(tmp_path):
    repository = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", RANKS]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment(), cwd=repository) for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    metric = BenchmarkFigures(Drawn())
    metric.update(range(len(RECORDS)), RECORDS)
    alone = json.loads(json.dumps(metric.compute()))
    assert json.loads((tmp_path / "0.json").read_text()) == alone
    assert json.loads((tmp_path / "1.json").read_text()) == alone
    assert (alone["score"], alone["n"]) == (18.0, 12)
