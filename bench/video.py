"""Readers of videos beside each other: speed, memory over many reads, and what they do with damaged files.

Each reader runs in a process of its own, as it does in training; they take turns in every round. A reader that cannot be loaded
here is told and left out. `python bench/video.py --help` for the options. `data.video_reader=auto` takes the first reader
of `vlmkit.processing.readers.READERS` that works.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from vlmkit.demo.clip import draw_clip
from vlmkit.errors import ConfigError
from vlmkit.processing.readers import READERS, ReadError
from vlmkit.processing.reading import ReadingProcess, ReadTimeout
from vlmkit.processing.video import choose_reader

SAMPLED_FPS = 2.0


def main() -> int:
    """Draw or take a video, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--video", type=Path, help="a video file; else one is drawn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--reads", type=int, default=50, help="reads over which memory is watched")
    parser.add_argument("--quick", action="store_true", help="one round, ten reads")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.reads = 1, 10
    with tempfile.TemporaryDirectory() as folder:
        video = options.video or draw_clip(Path(folder) / "drawn.mp4")
        processes = {name: ReadingProcess(name, timeout_seconds=60.0) for name in usable()}
        speed(video, processes, options.rounds)
        memory(video, processes, options.reads)
        damage(video, processes, Path(folder))
        for process in processes.values():
            process.close()
    return 0


def usable() -> list[str]:
    """Readers that can be loaded here; the others are told."""
    found: list[str] = []
    for name in READERS:
        try:
            found.append(choose_reader(name))
        except ConfigError as error:
            print(f"left out: {error}")
    return found


def speed(video: Path, processes: dict[str, ReadingProcess], rounds: int) -> None:
    """Seconds for the header, for frames at the sampling rate, and for a few frames, in turns."""
    header = next(iter(processes.values())).header(video)
    step = max(1, round((header.fps or 1) / SAMPLED_FPS))
    asked = {
        "sampled": list(range(0, header.num_frames, step)),
        "every": list(range(header.num_frames)),
        "four": [0, header.num_frames // 3, header.num_frames // 2, header.num_frames - 1],
    }
    print(
        f"{video.name}: {header.num_frames} frames of {header.width} x {header.height}, {header.fps:.3g} a second; medians of {rounds} rounds"
    )
    times: dict[str, dict[str, list[float]]] = {
        name: {"header": [], **{kind: [] for kind in asked}} for name in processes
    }
    for number in range(rounds + 1):
        for name, process in processes.items():
            taken = {"header": timed(lambda process=process: process.header(video))}
            taken |= {
                kind: timed(lambda process=process, rows=rows: process.frames(video, rows))
                for kind, rows in asked.items()
            }
            if number:
                for kind, seconds in taken.items():
                    times[name][kind].append(seconds)
    first = next(iter(processes))
    print(
        f"  {'':<12}"
        + "".join(f"{kind + (f' ({len(asked[kind])})' if kind in asked else ''):>24}" for kind in times[first])
    )
    for name, kinds in times.items():
        cells = [
            f"{statistics.median(values) * 1e3:.0f} ms, {statistics.median(a / b for a, b in zip(values, times[first][kind], strict=True)):.2f}x"
            for kind, values in kinds.items()
        ]
        print(f"  {name:<12}" + "".join(f"{cell:>24}" for cell in cells))
    order = sorted(times, key=lambda name: statistics.median(times[name]["sampled"]))
    print(f"fastest first, frames as sampled: {', '.join(order)}; data.video_reader=auto: {', '.join(processes)}")


def timed(read: object) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    read()  # type: ignore[operator]
    return time.perf_counter() - start


def memory(video: Path, processes: dict[str, ReadingProcess], reads: int) -> None:
    """Resident memory of the reading process after one tenth of the reads, and after all."""
    print(f"memory of the reading process over {reads} reads of 32 frames")
    for name, process in processes.items():
        rows = list(range(32))
        early = 0.0
        for number in range(reads):
            process.frames(video, rows)
            if number == reads // 10:
                early = resident_mib(process)
        late = resident_mib(process)
        print(
            f"  {name:<12}{early:8.0f} MiB, then {late:.0f}: {(late - early) / (reads - reads // 10):+.2f} MiB a read"
        )


def resident_mib(process: ReadingProcess) -> float:
    """Resident memory of its child."""
    pid = process.pid
    lines = Path(f"/proc/{pid}/status").read_text().splitlines() if pid else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), float("nan"))


def damage(video: Path, processes: dict[str, ReadingProcess], folder: Path) -> None:
    """What each reader says of damaged copies, reading the last frame."""
    content = video.read_bytes()
    half = len(content) // 2
    kinds = {
        "cut at half": content[:half],
        "4 KiB of zeros within": content[:half] + bytes(4096) + content[half + 4096 :],
        "4 KiB of noise within": content[:half] + os.urandom(4096) + content[half + 4096 :],
        "no video at all": b"text\n" * 1000,
    }
    print("damaged files: header, then the last frame it promises")
    for kind, damaged in kinds.items():
        path = folder / f"damaged{video.suffix}"
        path.write_bytes(damaged)
        for name, process in processes.items():
            print(f"  {kind:<24}{name:<12}{outcome(process, path)}")


def outcome(process: ReadingProcess, path: Path) -> str:
    """In words."""
    start = time.perf_counter()
    try:
        header = process.header(path)
        told = f"{header.num_frames} frames; "
        process.frames(path, [header.num_frames - 1])
        told += "read"
    except ReadError as error:
        told = f"refused: {str(error)[:90]}"
    except ReadTimeout:
        told = "hung, and was stopped"
    return f"{told} ({time.perf_counter() - start:.1f} s)"


if __name__ == "__main__":
    sys.exit(main())
