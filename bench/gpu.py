"""Everything that is to be measured in the first hour on a GPU, by itself, in the order that gives most.

    make bench-gpu                              everything, on the GPU that is here
    python bench/gpu.py --only kernels steps    some of it
    python bench/gpu.py --quick                 tiny shapes, minutes on a CPU: that the script itself is sound

Writes `gpu.md` and `gpu.json` into `--out`, after every measurement, so that an hour that ends early is not lost. A measurement that
fails is a row with its error, and the next one goes on. Models have the real shapes and random weights; no file is downloaded.
What each figure should be, and where to look when it is not, is in `bench/gpu.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.batch import Batch
from vlmkit.model.freeze import FreezePolicy
from vlmkit.preflight.packs import assumed_pack
from vlmkit.preflight.simulation import (
    PackShape,
    StepSetting,
    make_batch,
    make_optimizer_of,
    make_packed,
    run_step,
    simulate_step,
)
from vlmkit.preflight.tracking import StepTracker
from vlmkit.training.flops import count_flops
from vlmkit.training.optim import OptimizerPlan

SCHEMA = "vlmkit.bench.gpu/1"
STAGES = {
    "stage 1": FreezePolicy(vision_encoder=True, merger=False, language_model=True),
    "stage 2": FreezePolicy(vision_encoder=True, merger=False, language_model=False),
    "full": FreezePolicy(vision_encoder=False, merger=False, language_model=False),
}
PLAN = OptimizerPlan(
    lr=1e-5, lr_vision_encoder=None, lr_merger=None, lr_language_model=None, layer_decay=1.0, weight_decay=0.0, beta1=0.9,
    beta2=0.999, eps=1e-8, fp32_masters=True, optimizer=None, schedule="constant", warmup_ratio=0.0, min_lr_ratio=0.0,
)  # fmt: skip
_SMALL_VISION = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_LARGE_VISION = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
# Width, MLP, layers, heads and heads of keys and values, as the checkpoints' config.json have them.
SHAPES = {
    "Qwen3-VL-2B vision, Qwen3-0.6B": (_SMALL_VISION, (1024, 3072, 28, 16, 8), True),
    "Qwen3-VL-2B": (_SMALL_VISION, (2048, 6144, 28, 16, 8), True),
    "Qwen3-VL-8B": (_LARGE_VISION, (4096, 12288, 36, 32, 8), False),
}
TINY = {
    "tiny": (
        {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "deepstack_visual_indexes": [0]},
        (64, 128, 2, 4, 2),
        True,
    )
}
GIB = 2**30
Row = dict[str, Any]


@dataclass
class Bench:
    """What measurements share.

    Attributes:
        quick: Tiny shapes.
        device: Where.
        scratch: For files.
        results: Rows by measurement, as they come.
    """

    quick: bool
    device: torch.device
    scratch: Path
    results: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, Any]:
        """Models to measure."""
        return TINY if self.quick else SHAPES

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        """As trained by default."""
        return "bf16-mixed"

    def seconds(self, run: Callable[[], object], *, rounds: int = 5) -> float:
        """Median seconds of a call, after two that warm up."""
        taken: list[float] = []
        for number in range(2 + (1 if self.quick else rounds)):
            self.wait()
            started = time.perf_counter()
            run()
            self.wait()
            if number >= 2:
                taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    def wait(self) -> None:
        """Until the device is done."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Release memory between measurements."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def environment(bench: Bench) -> list[Row]:
    """What ran where."""
    packages = {}
    for name in ("torch", "torchvision", "transformers", "lightning", "flash-attn", "liger-kernel", "vlmkit"):
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    row: Row = {"python": platform.python_version(), **packages}
    if bench.on_gpu:
        properties = torch.cuda.get_device_properties(0)
        row |= {
            "GPU": properties.name,
            "GPUs": torch.cuda.device_count(),
            "GiB": round(properties.total_memory / GIB, 1),
            "compute capability": f"{properties.major}.{properties.minor}",
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    return [row]


def kernels(bench: Bench) -> list[Row]:
    """Attention kernels on the same packed row, forward and backward, beside SDPA segment by segment."""
    from vlmkit.errors import ConfigError
    from vlmkit.model import attention

    lengths = [64, 96, 32] if bench.quick else [1024, 2048, 512, 700, 1500, 300, 1100, 1008]
    rows: list[Row] = []
    for part, heads, kv_heads, size, causal in (
        ("language model", 16, 8, 128, True),
        ("vision encoder", 16, 16, 64, False),
    ):
        dtype = torch.bfloat16
        query, key, value = (
            torch.randn(sum(lengths), count, size, device=bench.device, dtype=dtype, requires_grad=True)
            for count in (heads, kv_heads, kv_heads)
        )
        starts = torch.tensor([0, *lengths], device=bench.device).cumsum(0).to(torch.int32)
        reference: Tensor | None = None
        for kernel in ("sdpa", "varlen", "flash", "flash3", "flash4"):
            segments = attention.Segments(starts, lengths, attention.PartAttention(kernel))

            def run(segments: Any = segments, inputs: Any = (query, key, value), causal: bool = causal) -> Tensor:
                output = attention.attend_segments(*inputs, segments=segments, causal=causal, scale=0.1)
                output.float().sum().backward()
                return output

            try:
                output = run().detach().float()
            except ConfigError as error:
                rows.append({"part": part, "kernel": kernel, "not here": str(error).split(". Use")[0]})
                continue
            reference = output if reference is None else reference
            row: Row = {"part": part, "kernel": kernel, "ms": round(1000 * bench.seconds(run), 3)}
            rows.append(row | {"largest difference from sdpa": float((output - reference).abs().max())})
    fastest = {row["part"]: row["ms"] for row in rows if row["kernel"] == "sdpa"}
    for row in rows:
        if "ms" in row:
            row["times sdpa"] = round(fastest[row["part"]] / row["ms"], 2)
    return rows


def losses(bench: Bench) -> list[Row]:
    """A short run in bf16 here beside the same run in fp32 on the CPU, step by step."""
    steps = 3 if bench.quick else 20
    here = ["trainer.accelerator=auto", "trainer.precision=bf16-mixed"]
    runs = {"here, bf16-mixed": here, "CPU, fp32": ["trainer.accelerator=cpu", "trainer.precision=32-true"]}
    lines = {name: train(bench, name, *overrides, f"trainer.max_steps={steps}") for name, overrides in runs.items()}
    first, second = lines.values()
    return [
        {"step": a["step"], **{name: each["loss"] for name, each in zip(lines, (a, b), strict=True)},
         "relative difference": abs(a["loss"] - b["loss"]) / abs(b["loss"])}
        for a, b in zip(first, second, strict=True)
    ]  # fmt: skip


def steps(bench: Bench) -> list[Row]:
    """Seconds, tokens, MFU and peak memory of a step at each stage, beside the memory that was simulated."""
    rows: list[Row] = []
    for model in bench.shapes:
        for stage in STAGES:
            rows.append(measure_step(bench, model, stage, recompute=model != "tiny" and stage != "stage 1"))
    return rows


def variants(bench: Bench) -> list[Row]:
    """Stage 2 of the first model with one thing changed at a time."""
    model = next(iter(bench.shapes))
    return [
        {"variant": name, **measure_step(bench, model, "stage 2", **changes)}
        for name, changes in {
            "plain": {},
            "recomputed": {"recompute": True},
            "compiled": {"compiled": True},
            "Liger's kernels": {"kernels": "liger"},
            "bf16-true": {"precision": "bf16-true"},
            "attention by sdpa": {"kernel": "sdpa"},
        }.items()
    ]


def waits(bench: Bench) -> list[Row]:
    """How often the host waits for the device in a step that is not logged, by `torch.cuda.set_sync_debug_mode`."""
    if not bench.on_gpu:
        return [{"not here": "no GPU"}]
    setting = make_setting(bench, next(iter(bench.shapes)), "stage 2")
    packed, optimizer, batch = make_run(bench, setting, pack_of(bench))
    run_step(packed, optimizer, batch, setting, StepTracker())
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                run_step(packed, optimizer, batch, setting, StepTracker())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = {f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)}
    return [{"waits in 3 steps": len(places), "at": ", ".join(sorted(places)) or "-"}]


def patches(bench: Bench) -> list[Row]:
    """The patch embedding as the stock Conv3d and as a matrix product, forward and backward in bf16."""
    from vlmkit.model.patch_embed import embed_patches

    num_patches, width = (64, 64) if bench.quick else (4096, 1024)
    convolution = nn.Conv3d(3, width, (2, 16, 16), (2, 16, 16), device=bench.device, dtype=torch.bfloat16)
    stills = torch.randn(num_patches, 3 * 16 * 16, device=bench.device, dtype=torch.bfloat16)
    doubled = stills.unflatten(1, (3, 1, 16, 16)).expand(-1, -1, 2, -1, -1)
    videos = stills.new_empty(0, 3 * 2 * 16 * 16)
    stock = bench.seconds(lambda: convolution(doubled).sum().backward())
    ours = bench.seconds(lambda: embed_patches(convolution, stills, videos).sum().backward())
    return [{"Conv3d ms": 1000 * stock, "product ms": 1000 * ours, "times faster": stock / ours}]


def stock(bench: Bench) -> list[Row]:
    """A step of transformers' own model on padded rows, as its Trainer runs it, beside ours on the same rows in one pack."""
    from step import make_model, make_samples, our_batch, stock_batch

    from vlmkit.demo import tiny_checkpoints
    from vlmkit.model.packed import PackedVLM
    from vlmkit.processing.processor import load_processor

    processor = load_processor(tiny_checkpoints().vision_language)
    samples = make_samples(*((2, 0.05) if bench.quick else (16, 1.0)), processor)
    width, depth, vocabulary = (256, 4, 1024) if bench.quick else (1024, 16, 151_936)
    rows: list[Row] = []
    for name in ("transformers, padded", "vlmkit, packed"):
        bench.forget()
        model = make_model(processor, width=width, depth=depth, vocabulary=vocabulary).to(bench.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        packs = name == "vlmkit, packed"
        batch: Any = {
            key: value.to(bench.device) if isinstance(value, Tensor) else value
            for key, value in (our_batch if packs else stock_batch)(samples, processor).items()
        }
        packed = PackedVLM(model, pixel_mean=[127.5] * 3, pixel_std=[127.5] * 3) if packs else None

        def run(model: Any = model, packed: Any = packed, batch: Any = batch, optimizer: Any = optimizer) -> None:
            with torch.autocast(bench.device.type, torch.bfloat16):
                loss = model(**batch, use_cache=False).loss if packed is None else packed(batch).loss_sum
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        row: Row = {"side": name, "seconds": bench.seconds(run)}
        rows.append(row | {"GiB allocated": torch.cuda.max_memory_allocated() / GIB if bench.on_gpu else None})
    for row in rows:
        row["times as fast as transformers"] = rows[0]["seconds"] / row["seconds"]
    return rows


def generation(bench: Bench) -> list[Row]:
    """A whole evaluation beside a loop over `generate` (`bench/generate.py`)."""
    return script("generate.py", bench, [])


def ranks(bench: Bench) -> list[Row]:
    """Tokens a second of one and of several ranks, under DDP and FSDP2."""
    count = torch.cuda.device_count() if bench.on_gpu else 2
    numbers = sorted({1, 2, count} if count > 1 else {1})
    rows: list[Row] = []
    for strategy in ("ddp", "fsdp"):
        for number in numbers:
            trainer = "single" if number == 1 else strategy
            overrides = [
                f"trainer={trainer}",
                f"trainer.devices={number}",
                "trainer.accelerator=" + ("gpu" if bench.on_gpu else "cpu"),
            ]
            lines = train(bench, f"{strategy} {number}", *overrides, f"trainer.max_steps={4 if bench.quick else 30}")
            speed = statistics.median(line["tokens_per_second"] for line in lines[len(lines) // 2 :])
            rows.append({"trainer": trainer, "ranks": number, "tokens/s": round(speed), "last loss": lines[-1]["loss"]})
    return rows


MEASUREMENTS: tuple[Callable[[Bench], list[Row]], ...] = (
    environment, kernels, losses, steps, variants, waits, patches, stock, generation, ranks,
)  # fmt: skip


def make_config(vision: dict[str, Any], text: tuple[int, int, int, int, int], tied: bool) -> Any:
    """The config of a Qwen3-VL of these sizes."""
    from transformers import Qwen3VLConfig

    width, mlp, layers, heads, kv_heads = text
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return Qwen3VLConfig(
        text_config={
            "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": 128, "vocab_size": 1024 if width < 128 else 151_936,
            "rope_parameters": rope, "tie_word_embeddings": tied,
        },
        vision_config={
            **vision, "num_heads": 16 if vision["hidden_size"] > 64 else 2, "patch_size": 16, "temporal_patch_size": 2,
            "spatial_merge_size": 2, "num_position_embeddings": 2304, "out_hidden_size": width,
        },
        tie_word_embeddings=tied,
    )  # fmt: skip


def make_setting(bench: Bench, model: str, stage: str, **changes: Any) -> StepSetting:
    """A step on one device."""
    settings: dict[str, Any] = {
        "precision": bench.precision,
        "recompute_language_model": False,
        "kernel": "auto",
    }
    settings |= changes
    return StepSetting(
        config=make_config(*bench.shapes[model]),
        freeze=STAGES[stage],
        lora=None,
        optimizer=PLAN,
        recompute_vision_encoder=False,
        strategy="single",
        num_ranks=1,
        accumulate=1,
        **settings,
    )


def pack_of(bench: Bench) -> PackShape:
    """A pack of 1,024-token samples with an image each."""
    return assumed_pack(256 if bench.quick else 8192, merge_size=2)


def make_run(bench: Bench, setting: StepSetting, shape: PackShape) -> tuple[Any, Any, Batch]:
    """A model with random weights on the device, its optimiser and a batch."""
    torch.manual_seed(0)
    packed = make_packed(setting, None).to(bench.device)
    with torch.no_grad():
        for parameter in packed.parameters():
            parameter.normal_(0.0, 0.02)
    from vlmkit.model.parts import restore_rotary_buffers

    restore_rotary_buffers(packed.hf)
    batch: Any = {
        key: value.to(bench.device) if isinstance(value, Tensor) else value
        for key, value in make_batch(shape, setting.config).items()
    }
    return packed, make_optimizer_of(packed, setting), batch


def measure_step(
    bench: Bench, model: str, stage: str, *, recompute: bool = False, compiled: bool = False, kernels: str = "torch",
    **changes: Any,
) -> Row:  # fmt: skip
    """One row: a step of a model at a stage, or why it could not be measured."""
    from vlmkit.model.compiling import compile_blocks
    from vlmkit.model.liger import use_kernels
    from vlmkit.training.peaks import peak_flops

    bench.forget()
    row: Row = {"model": model, "stage": stage, "recomputed": recompute}
    setting = make_setting(bench, model, stage, recompute_language_model=recompute, **changes)
    shape = pack_of(bench)
    try:
        packed, optimizer, batch = make_run(bench, setting, shape)
        if kernels != "torch":
            use_kernels(packed.hf, kernels)
        if compiled:
            packed.compiled = True
            compile_blocks(packed.hf)
        seconds = bench.seconds(lambda: run_step(packed, optimizer, batch, setting, StepTracker()))
    except Exception as error:  # noqa: BLE001  # whatever it is, it is this row's result
        return row | {"not measured": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    tokens = sum(sample.num_tokens for sample in shape)
    peak = peak_flops(bench.device, setting.precision)
    row |= {"seconds": seconds, "tokens/s": tokens / seconds}
    row["MFU"] = None if peak is None else count_flops(packed.hf)(batch) / seconds / peak
    row["GiB allocated"] = torch.cuda.max_memory_allocated() / GIB if bench.on_gpu else None
    row["GiB simulated"] = simulate_step(setting, shape).peak_bytes / GIB
    if bench.on_gpu:
        row["simulated over allocated"] = row["GiB simulated"] / row["GiB allocated"]
    return row


def train(bench: Bench, name: str, *overrides: str) -> list[Row]:
    """Run `vlmkit-train` on drawn shapes in a process of its own; the lines of its log."""
    run_dir = bench.scratch / name.replace(" ", "_").replace(",", "")
    command = [
        sys.executable, "-m", "vlmkit.cli.train", f"run_dir={run_dir}", "log.every_n_steps=1", "log.progress=false",
        "callbacks.forecast=null", "data.limit=256", *overrides,
    ]  # fmt: skip
    done = subprocess.run(command, text=True, capture_output=True, timeout=1200, check=False)
    if done.returncode:
        raise RuntimeError(f"vlmkit-train ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]


def script(name: str, bench: Bench, arguments: Sequence[str]) -> list[Row]:
    """What another script of this directory prints."""
    command = [sys.executable, str(Path(__file__).parent / name), *arguments, *(["--quick"] if bench.quick else [])]
    done = subprocess.run(command, text=True, capture_output=True, timeout=1800, check=False)
    if not done.stdout.strip():
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return [{"printed": line} for line in done.stdout.splitlines() if line.strip()]


def to_markdown(bench: Bench, seconds: dict[str, float]) -> str:
    """All results so far as tables."""
    where = torch.cuda.get_device_name(0) if bench.on_gpu else "a CPU"
    lines = [f"# Measured on {where}", ""]
    for measurement in MEASUREMENTS:
        name = measurement.__name__
        if name not in bench.results:
            continue
        lines += [f"## {name}", "", f"{(measurement.__doc__ or '').strip()} ({seconds[name]:.0f} s)", ""]
        columns = list(dict.fromkeys(key for row in bench.results[name] for key in row))
        lines += [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
        lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in bench.results[name]]
        lines.append("")
    return "\n".join(lines)


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    """Run what was asked for; the exit status is 1 where a measurement failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [measurement.__name__ for measurement in MEASUREMENTS]
    parser.add_argument("--only", nargs="*", choices=names, help="measurements to run; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-gpu"), help="directory for gpu.md and gpu.json")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.quick:
        sys.exit("bench/gpu.py: no GPU here. `--quick` runs tiny shapes on the CPU, to see that the script is sound.")
    failed: list[str] = []
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(quick=options.quick, device=device, scratch=Path(scratch))
        seconds: dict[str, float] = {}
        for measurement in MEASUREMENTS:
            name = measurement.__name__
            if options.only and name not in options.only:
                continue
            started = time.perf_counter()
            try:
                bench.results[name] = measurement(bench)
            except Exception as error:  # noqa: BLE001  # the hour goes on
                traceback.print_exc()
                bench.results[name] = [{"failed": f"{type(error).__name__}: {error}"}]
                failed.append(name)
            seconds[name] = time.perf_counter() - started
            print(f"{name}: {len(bench.results[name])} rows in {seconds[name]:.0f} s", flush=True)
            content = {"schema": SCHEMA, "quick": options.quick, "seconds": seconds, "results": bench.results}
            (options.out / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
            (options.out / "gpu.md").write_text(to_markdown(bench, seconds))
    print(f"{options.out / 'gpu.md'} and gpu.json" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
