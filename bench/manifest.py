"""Open a manifest of a million rows: offset pass, cached opening, memory, random rows; beside json and datasets.

The manifest (three layouts of the same rows, about 700 bytes each) is written into a temporary directory. Every
measurement runs in a process of its own on a file that is in the page cache. `python bench/manifest.py --help` for the
options.

Printed, and checked (exit status 1 where a target is missed):
- the pass that finds the rows, as a multiple of a numpy newline scan of the JSONL file: at most 2.5 for JSONL, 4 for an
  array with an object a line, 12 for any other array. Hashing the contents for the cache key is counted in.
- opening again through the cache: under 10 ms.
- private memory of a process that reads rows, and of two forked workers after a full garbage collection: at most
  64 MiB each.
- random rows, parsed: at least 5 times as many a second as Hugging Face datasets reads.
- the exact pass over text rows (tokens counted), on one core: at least 3,500 rows a second.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LAYOUTS = {"rows.jsonl": 2.5, "lines.json": 4.0, "compact.json": 12.0}
"""Files, and the most their pass may cost in newline scans."""
MAX_OPEN_SECONDS = 0.010
MAX_PRIVATE_MIB = 64
MIN_RANDOM_RATIO = 5.0
MIN_TEXT_ROWS_PER_SECOND = 3500
NUM_READ = 20_000
NUM_WORKER_READ = 5_000
NUM_TEXT_ROWS = 4_000
SAID = (
    "the a red blue green square circle person horse old stone bridge near left right of on is are there what which "
    "how many do you see in this image please describe it briefly shows standing holding under bright sky caf\u00e9 "
    '"quoted" 12 3.5 yes no'
)
WORDS = SAID.split()


def main() -> int:
    """Write the manifests, measure everything in fresh processes, print and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, help="keep the manifests here, and use them again")
    parser.add_argument("--others", action="store_true", help="json.load and datasets on the array too (minutes, GB)")
    parser.add_argument("--quick", action="store_true", help="20,000 rows; seconds are not judged")
    parser.add_argument("--measure", choices=sorted(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.file)))
        return 0
    with tempfile.TemporaryDirectory(prefix="vlmkit-bench-") as scratch:
        directory = options.directory or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        write_manifests(directory, 20_000 if options.quick else options.rows)
        return run(directory, options.others, timed=not options.quick)


def write_manifests(directory: Path, num_rows: int) -> None:
    """The same rows as JSONL, as an array with an object a line, and as one line."""
    marker = directory / f"rows-{num_rows}"
    if marker.exists():
        return
    rng = random.Random(0)
    with (
        open(directory / "rows.jsonl", "w") as lines,
        open(directory / "lines.json", "w") as array,
        open(directory / "compact.json", "w") as compact,
    ):
        array.write("[\n")
        compact.write("[")
        for number in range(num_rows):
            text = json.dumps(make_row(number, rng))
            last = number == num_rows - 1
            lines.write(text + "\n")
            array.write(text + ("\n]\n" if last else ",\n"))
            compact.write(text + ("]" if last else ", "))
    marker.touch()


def make_row(number: int, rng: random.Random) -> dict[str, Any]:
    """An image and one to five exchanges."""

    def said(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    turns: list[dict[str, str]] = []
    for exchange in range(rng.randint(1, 5)):
        turns.append({"from": "human", "value": ("<image>\n" if not exchange else "") + said(5, 15)})
        turns.append({"from": "gpt", "value": said(3, 30)})
    return {"id": str(number), "image": f"coco/{number:08d}.jpg", "conversations": turns}


def run(directory: Path, others: bool, *, timed: bool) -> int:
    """Measure, print, and say whether every target was met; those of time only where it is `timed`."""

    def measured(name: str, file: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--measure", name, "--file", str(directory / file)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    met: list[bool] = []

    def tell(what: str, found: str, target: str = "", good: bool = True) -> None:
        met.append(good)
        print(f"{what:<46} {found:<34} {target}{'' if good else '   MISSED'}", flush=True)

    floor = measured("newlines", "rows.jsonl")["seconds"]
    size = (directory / "rows.jsonl").stat().st_size / 2**20
    tell(f"newline scan by numpy, {size:,.0f} MiB", f"{floor:.2f} s")
    for file, most in LAYOUTS.items():
        seconds = measured("pass", file)["seconds"]
        tell(
            f"rows found, {file}",
            f"{seconds:.2f} s, {seconds / floor:.2f} scans",
            f"at most {most}",
            not timed or seconds <= most * floor,
        )
    opened = measured("open", "rows.jsonl")
    tell(
        "opened through the cache",
        f"{opened['seconds'] * 1e3:.2f} ms",
        "under 10",
        not timed or opened["seconds"] < MAX_OPEN_SECONDS,
    )
    for who in ("main", "worker"):
        memory = opened[f"{who}_mib"]
        tell(
            f"private memory, {who} process",
            f"{memory:.0f} MiB",
            f"at most {MAX_PRIVATE_MIB}",
            memory <= MAX_PRIVATE_MIB,
        )
    tell("random rows, read and parsed", f"{opened['rows_per_second']:,.0f} rows/s")
    tell("random rows, checked conversations", f"{opened['conversations_per_second']:,.0f} rows/s")
    exact = measured("exact", "rows.jsonl")
    tell(
        "exact pass, text rows, one core",
        f"{exact['rows_per_second']:,.0f} rows/s",
        f"at least {MIN_TEXT_ROWS_PER_SECOND:,}",
        not timed or exact["rows_per_second"] >= MIN_TEXT_ROWS_PER_SECOND,
    )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in exact["shares"].items())
    tell("  of which", shares)
    hugging = measured("datasets", "rows.jsonl")
    tell("datasets, rows.jsonl, first time", f"{hugging['cold']:.1f} s, peak {hugging['peak_mib']:,.0f} MiB")
    tell("datasets, again", f"{hugging['warm']:.2f} s")
    ratio = opened["rows_per_second"] / hugging["rows_per_second"]
    tell(
        "datasets, random rows",
        f"{hugging['rows_per_second']:,.0f} rows/s; vlmkit {ratio:.1f} times",
        f"at least {MIN_RANDOM_RATIO}",
        not timed or ratio >= MIN_RANDOM_RATIO,
    )
    if others:
        loaded = measured("json", "compact.json")
        tell("json.load, compact.json", f"{loaded['seconds']:.1f} s, peak {loaded['peak_mib']:,.0f} MiB")
        hugging = measured("datasets", "compact.json")
        tell("datasets, compact.json, first time", f"{hugging['cold']:.1f} s, peak {hugging['peak_mib']:,.0f} MiB")
    return 0 if all(met) else 1


def best_of(action: Callable[[], object], times: int = 3) -> float:
    """Fewest seconds of a few runs."""
    seconds: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def consume(rows: Iterable[object]) -> None:
    """Ask for every row and keep none, as an epoch does."""
    for _ in rows:
        pass


def measure_newlines(file: Path) -> dict[str, float]:
    """Find every newline in a mapped file: what no index can be faster than."""
    import numpy as np

    def scan() -> int:
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
            text = np.frombuffer(view, dtype=np.uint8)
            found = sum(len(np.flatnonzero(text[at : at + (1 << 22)] == 10)) for at in range(0, len(text), 1 << 22))
            del text
        return found

    return {"seconds": best_of(scan)}


def measure_pass(file: Path) -> dict[str, float]:
    """Hash a manifest and find its rows, with an empty cache."""
    from vlmkit.data.contents import content_hash
    from vlmkit.data.indexing import row_spans

    def index() -> None:
        with tempfile.TemporaryDirectory() as cache:
            row_spans(file, content=content_hash(file, Path(cache)), cache_dir=Path(cache))

    return {"seconds": best_of(index)}


def measure_open(file: Path) -> dict[str, float]:
    """Open an index through the cache, read random rows, here and in two forked workers."""
    import orjson

    from vlmkit.data.contents import content_hash
    from vlmkit.data.index import Index
    from vlmkit.data.indexing import row_spans
    from vlmkit.data.manifest import Source

    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        make_index(file, cache)
        source = Source(path=file, root=file.parent, name="rows")
        os.utime(file, (time.time() - 60, time.time() - 60))
        time.sleep(2.1)  # a hash is remembered once the file has rested
        content_hash(file, cache)

        def opened() -> Index:
            row_spans(file, content=content_hash(file, cache), cache_dir=cache)
            return Index(cache / "index.bin", [source], key="bench", allow_absolute_paths=False)

        seconds = best_of(opened, 10)
        index = opened()
        chosen = random.Random(0).choices(range(len(index)), k=NUM_READ)
        read = best_of(lambda: consume(orjson.loads(index.read(row)) for row in chosen))
        checked = best_of(lambda: consume(index.conversation(row) for row in chosen))
        worker = max(in_fork(lambda: read_and_collect(index)) for _ in range(2))
        gc.collect()
        return {
            "seconds": seconds,
            "rows_per_second": NUM_READ / read,
            "conversations_per_second": NUM_READ / checked,
            "main_mib": private_mib(),
            "worker_mib": worker,
        }


def make_index(file: Path, cache: Path) -> None:
    """An index of the right size with the right offsets; the counts, which cost minutes, are made up."""
    import numpy as np

    from vlmkit.data.columns import ColumnsWriter
    from vlmkit.data.contents import content_hash
    from vlmkit.data.index import COLUMNS, SCHEMA
    from vlmkit.data.indexing import row_spans

    spans = row_spans(file, content=content_hash(file, cache), cache_dir=cache)
    writer = ColumnsWriter(cache / "part", COLUMNS, schema=SCHEMA, key="bench")
    for start in range(0, len(spans.offset), 65_536):
        part = slice(start, start + 65_536)
        columns = {name: np.ones(len(spans.offset[part]), dtype=dtype) for name, dtype in COLUMNS.items()}
        columns |= {"offset": spans.offset[part], "length": spans.length[part]}
        columns |= {name: np.zeros_like(columns[name]) for name in ("source", "verdict")}
        writer.append(**columns)
    writer.finish(cache / "index.bin", extra={"contents": ["x"], "reasons": [], "media_reasons": [], "faults": []})


def read_and_collect(index: Any) -> float:
    """What a worker does: read rows, collect garbage; gives its private memory."""
    rows = random.Random(os.getpid()).choices(range(len(index)), k=NUM_WORKER_READ)
    for row in rows:
        index.conversation(row)
    gc.collect()
    return private_mib()


def in_fork(action: Callable[[], float]) -> float:
    """Run an action in a forked process; gives its result."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, str(action()).encode())
        os._exit(0)
    os.wait()
    return float(os.read(read, 64))


def private_mib() -> float:
    """Memory of this process that it shares with no other and that no file backs."""
    told = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in told.splitlines() if line.startswith("Private_Dirty")) / 1024


def measure_exact(file: Path) -> dict[str, Any]:
    """Count the tokens of text rows with one thread, and where the time goes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import orjson

    from vlmkit.data.manifest import decode_row
    from vlmkit.demo import tiny_checkpoints
    from vlmkit.errors import Origin
    from vlmkit.processing.encode import measure_example
    from vlmkit.processing.processor import load_processor
    from vlmkit.processing.supervision import render

    processor = load_processor(tiny_checkpoints().vision_language)
    if tokenizer := os.environ.get("VLMKIT_BENCH_TOKENIZER"):
        from transformers import AutoTokenizer

        processor.hf.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    rows: list[bytes] = []
    with open(file, "rb") as lines:
        for line, _ in zip(lines, range(NUM_TEXT_ROWS), strict=False):
            row = orjson.loads(line)
            del row["image"]
            row["conversations"][0]["value"] = row["conversations"][0]["value"].removeprefix("<image>\n")
            rows.append(orjson.dumps(row))
    origin, root = Origin("rows", 1), Path()
    conversations = [decode_row(row, origin=origin, root=root) for row in rows]
    texts = [[part.text for turn in one.turns for part in turn.parts] for one in conversations]  # type: ignore[union-attr]
    encode = processor.hf.tokenizer.backend_tokenizer.encode_batch
    parsing = best_of(lambda: [decode_row(row, origin=origin, root=root) for row in rows])
    measuring = best_of(lambda: [measure_example(one, processor) for one in conversations])
    rendering = best_of(lambda: [render(one, processor) for one in conversations])
    tokenising = best_of(lambda: [encode(text) for text in texts])
    total = parsing + measuring
    shares = {"tokeniser": tokenising, "template": rendering, "parsing and checks": parsing}
    return {
        "rows_per_second": len(rows) / total,
        "shares": {name: seconds / total for name, seconds in shares.items()},
    }


def measure_json(file: Path) -> dict[str, float]:
    """Parse a whole array."""
    start = time.perf_counter()
    with open(file) as opened:
        loaded = json.load(opened)
    return {"seconds": time.perf_counter() - start, "peak_mib": peak_mib(), "rows": len(loaded)}


def measure_datasets(file: Path) -> dict[str, float]:
    """Load by Hugging Face datasets with an empty cache, again, and read random rows."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:

        def load() -> Any:
            return datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=cache)

        start = time.perf_counter()
        loaded = load()
        cold, peak = time.perf_counter() - start, peak_mib()
        warm = best_of(load)
        chosen = random.Random(0).choices(range(len(loaded)), k=NUM_READ // 4)
        read = best_of(lambda: consume(loaded[row] for row in chosen))
    return {"cold": cold, "warm": warm, "rows_per_second": len(chosen) / read, "peak_mib": peak}


def peak_mib() -> float:
    """Most resident memory of this process so far."""
    told = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in told.splitlines() if line.startswith("VmHWM")) / 1024


MEASURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "newlines": measure_newlines,
    "pass": measure_pass,
    "open": measure_open,
    "exact": measure_exact,
    "json": measure_json,
    "datasets": measure_datasets,
}

if __name__ == "__main__":
    sys.exit(main())
