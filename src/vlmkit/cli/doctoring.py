"""Looks at a machine, section by section: what `vlmkit-doctor` says."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlmkit import __version__
from vlmkit.cli.findings import MARKS, Section

SCHEMA = "vlmkit.doctor/1"
GIB = 1 << 30
PACKAGES = (
    "torch", "torchvision", "lightning", "transformers", "tokenizers", "safetensors", "hydra-core", "omegaconf", "torchmetrics",
    "datasets", "qwen-vl-utils", "pillow", "numpy", "huggingface-hub",
)  # fmt: skip
OPTIONAL: dict[str, tuple[str, str]] = {
    "torchcodec": ("video", "the fastest reader of videos; it needs FFmpeg's libraries from the system too"),
    "peft": ("lora", "model.lora"),
    "liger_kernel": ("liger", "model.kernels=liger: fused norms and activations on a GPU"),
    "flash_attn": ("flash", "the fastest attention on a GPU; without it PyTorch's own variable-length kernel is used"),
    "vllm": ("vllm", "backend=vllm"),
    "tensorboard": ("tensorboard", "logger=tensorboard"),
    "mlflow": ("mlflow", "logger=mlflow"),
    "optuna": ("sweep", "hydra/sweeper=optuna: a search of settings"),
    "submitit": ("sweep", "hydra/launcher=submitit_slurm: the runs of a sweep as jobs of SLURM"),
}
"""Modules that are not needed: the extra that brings each, and what for."""
_WIDTH, _PATCH, _TEMPORAL, _NUM_PATCHES = 1024, 16, 2, 1024
"""Of the vision encoder of Qwen3-VL-2B; patches of a 512 x 512 image."""
_DISK_BYTES = 64 << 20
_CLIP_FRAMES = 100
_TIMES = 5


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All sections, and whether vlmkit can run here."""

    sections: tuple[Section, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing that is needed is missing."""
        return all(section.mark != "error" for section in self.sections)

    def to_text(self) -> str:
        """For people; the last line says what it comes to."""
        last = "vlmkit can run here." if self.sound else "vlmkit cannot run here: mend what is marked error above."
        return "\n\n".join([*(section.to_text() for section in self.sections), last])

    def to_json(self) -> dict[str, Any]:
        """For machines; plain values."""
        sections = {section.name: section.to_json() for section in self.sections}
        return {"schema": SCHEMA, "sound": self.sound, "marks": list(MARKS), "sections": sections}


def examine(directory: Path, *, measure: bool, hub: bool) -> Examination:
    """Look at everything.

    Args:
        directory: Whose disk is looked at.
        measure: Whether to time what matters, a few seconds each.
        hub: Whether to ask the Hugging Face hub.
    """
    sections = [versions(), extras(), devices(), kernels(measure=measure), video(measure=measure)]
    return Examination(sections=(*sections, disk(directory, measure=measure), hub_access(ask=hub)))


def versions() -> Section:
    """Whether what vlmkit needs is there, in the releases it was tested with."""
    section = Section(name="versions")
    found = {name: _version(name) for name in PACKAGES}
    section.figures |= {"python": platform.python_version(), "vlmkit": __version__, "packages": found}
    section.add(
        "ok", f"vlmkit {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    if missing := [name for name, version in found.items() if version is None]:
        section.add("error", f"not installed: {', '.join(missing)}. pip install vlmkit brings them")
    section.add("ok", ", ".join(f"{name} {version}" for name, version in found.items() if version))
    for told in _outside_the_tested_range(found):
        section.add("warning", told)
    return section


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _outside_the_tested_range(found: dict[str, str | None]) -> list[str]:
    """Packages whose version is not among those that this release asks for; nothing where vlmkit itself is not installed."""
    from packaging.requirements import Requirement

    try:
        required = metadata.requires("vlmkit") or []
    except metadata.PackageNotFoundError:
        return []
    told: list[str] = []
    for requirement in map(Requirement, required):
        version = found.get(requirement.name)
        if version and requirement.marker is None and not requirement.specifier.contains(version, prereleases=True):
            told.append(
                f"{requirement.name} {version} is outside of what this release was tested with ({requirement.specifier}). "
                f"pip install '{requirement.name}{requirement.specifier}'"
            )
    return told


def extras() -> Section:
    """What can be added, and what for."""
    section = Section(name="extras")
    here = [module for module in OPTIONAL if find_spec(module)]
    section.figures["installed"] = here
    if here:
        section.add("ok", f"installed: {', '.join(here)}")
    for module, (extra, purpose) in OPTIONAL.items():
        if module not in here:
            built = "--no-build-isolation " if extra == "flash" else ""  # its installer imports PyTorch
            section.add("note", f"{module} is not installed. pip install {built}'vlmkit[{extra}]' for {purpose}")
    return section


def devices() -> Section:
    """Processors and memory, and what the GPUs can compute in."""
    section = Section(name="devices")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    section.figures |= {"cpus": cores, "memory_bytes": _memory()}
    memory = f", {section.figures['memory_bytes'] / GIB:.0f} GiB of memory" if section.figures["memory_bytes"] else ""
    section.add("ok", f"{cores} CPUs{memory}")
    import torch

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    section.figures["gpus"] = [{"name": one.name, "memory_bytes": one.total_memory} for one in gpus]
    for number, one in enumerate(gpus):
        bf16 = "bf16" if one.major >= 8 else "no bf16: use trainer.precision=16-mixed"
        section.add(
            "ok" if one.major >= 8 else "warning",
            f"GPU {number}: {one.name}, {one.total_memory / GIB:.0f} GiB, {bf16}",
        )
    if not gpus:
        section.add("note", _why_no_gpu())
    return section


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _why_no_gpu() -> str:
    import torch

    if shutil.which("nvidia-smi") is None:
        return "no GPU: training runs on the CPU, which suffices for the tiny model and for tests"
    if torch.version.cuda is None:
        return "this machine has NVIDIA's driver, but PyTorch is built for the CPU. Install a CUDA build of PyTorch"
    return (
        "this machine has NVIDIA's driver, but PyTorch sees no GPU. Compare `nvidia-smi` with torch.version.cuda = "
        f"{torch.version.cuda}, and look at CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '(not set)')}"
    )


def kernels(*, measure: bool) -> Section:
    """Which attention a run would use, whether blocks can be compiled, and the patch embedding both ways."""
    import torch

    from vlmkit.model.attention import KERNEL_NAMES, choose_kernel, compute_capability, flash_fault, precision_fault

    section = Section(name="kernels")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    capability = compute_capability(device)
    half = torch.float16 if precision_fault("bf16-mixed", capability) else torch.bfloat16
    dtype = half if device.type == "cuda" else torch.float32
    kernel = choose_kernel("auto", device, dtype, capability)
    section.figures["attention"] = kernel
    section.add("ok", f"attention on {device.type}: {KERNEL_NAMES[kernel]} (model.attn_implementation=auto)")
    if find_spec("flash_attn") and (fault := flash_fault()):
        section.add("warning", fault)
    compiler = _compiler(device)
    section.figures["compiler"] = compiler
    if compiler is None:
        needed = "Triton (pip install triton)" if device.type == "cuda" else "a C++ compiler (g++ or clang++)"
        section.add("note", f"model.compile=true cannot run here: it needs {needed}")
    else:
        section.add("ok", f"model.compile=true can run ({compiler})")
    if measure:
        convolution, product = patch_embedding_seconds(device, dtype)
        section.figures |= {"patch_convolution_seconds": convolution, "patch_product_seconds": product}
        section.add(
            "ok",
            f"patch embedding of {_NUM_PATCHES} patches, forward and backward: {1000 * convolution:.1f} ms as a convolution, "
            f"{1000 * product:.1f} ms as the matrix product that vlmkit uses ({convolution / product:.1f} times faster)",
        )
    return section


def _compiler(device: Any) -> str | None:
    """What would compile blocks for a device; None where nothing can."""
    if device.type == "cuda":
        return "triton" if find_spec("triton") else None
    return next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def patch_embedding_seconds(device: Any, dtype: Any) -> tuple[float, float]:
    """Median seconds of a forward and backward pass of the patch embedding: as the stock convolution, and as ours."""
    import torch

    from vlmkit.model.patch_embed import embed_patches

    size = (_TEMPORAL, _PATCH, _PATCH)
    proj = torch.nn.Conv3d(3, _WIDTH, kernel_size=size, stride=size, device=device, dtype=dtype)
    still = torch.randn(_NUM_PATCHES, 3 * _PATCH**2, device=device, dtype=dtype)
    whole = still.reshape(-1, 3, 1, _PATCH, _PATCH).expand(-1, -1, _TEMPORAL, -1, -1).contiguous()
    none = still.new_zeros(0, 3 * _TEMPORAL * _PATCH**2)

    def seconds(embed: Callable[[], torch.Tensor]) -> float:
        times: list[float] = []
        for _ in range(_TIMES):
            _wait(device)
            start = time.perf_counter()
            embed().sum().backward()
            _wait(device)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    return seconds(lambda: proj(whole)), seconds(lambda: embed_patches(proj, still, none))


def _wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def video(*, measure: bool) -> Section:
    """Which readers of videos load here, and how fast each is."""
    from vlmkit.errors import ConfigError
    from vlmkit.processing.readers import READERS
    from vlmkit.processing.video import choose_reader

    section = Section(name="video")
    usable: list[str] = []
    for name in READERS:
        try:
            usable.append(choose_reader(name))
        except ConfigError as error:
            section.add("note", str(error).removeprefix("data.video_reader="))
    section.figures["readers"] = usable
    if not usable:
        section.add("error", "no library that reads videos loads here: pip install decord, or av")
        return section
    times = _reading_seconds(usable) if measure else {}
    section.figures["frame_seconds"] = times
    told = ", ".join(f"{name} {1000 * times[name]:.1f} ms a frame" if name in times else name for name in usable)
    section.add("ok", f"readers: {told}; data.video_reader=auto takes {usable[0]}")
    return section


def _reading_seconds(names: list[str]) -> dict[str, float]:
    """Median seconds for a frame of 640 x 360 pixels, reading every fifth, each reader in a process of its own."""
    from vlmkit.demo.clip import draw_clip
    from vlmkit.processing.reading import ReadingProcess

    wanted = list(range(0, _CLIP_FRAMES, 5))
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        clip = draw_clip(Path(folder) / "clip.mp4", num_frames=_CLIP_FRAMES)
        for name in names:
            process = ReadingProcess(name, timeout_seconds=60.0)
            process.frames(clip, wanted)  # starts it
            taken: list[float] = []
            for _ in range(_TIMES):
                start = time.perf_counter()
                process.frames(clip, wanted)
                taken.append((time.perf_counter() - start) / len(wanted))
            process.close()
            times[name] = statistics.median(taken)
    return times


def disk(directory: Path, *, measure: bool) -> Section:
    """Room and speed of the disk that runs are written to, and room where caches lie."""
    from huggingface_hub.constants import HF_HUB_CACHE

    section = Section(name="disk")
    places = {"runs": directory, "Hugging Face cache": Path(HF_HUB_CACHE)}
    for name, place in places.items():
        there = next(one for one in (place, *place.parents) if one.exists())
        free = shutil.disk_usage(there).free
        section.figures[name] = {"path": str(place), "free_bytes": free}
        section.add("ok" if free > 20 * GIB else "warning", f"{name}: {free / GIB:.0f} GiB free in {place}")
    if not os.access(directory, os.W_OK):
        section.add("error", f"nothing can be written to {directory}. Name another by directory=, and run there")
    elif measure:
        speed = _writing_speed(directory)
        section.figures["bytes_per_second"] = speed
        section.add(
            "ok", f"written and synced at {speed / 1e6:.0f} MB/s: a checkpoint of 10 GB takes {1e10 / speed:.0f} s"
        )
    return section


def _writing_speed(directory: Path) -> float:
    """Bytes a second, written in one file and synced."""
    content = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".vlmkit-doctor-") as file:
        start = time.perf_counter()
        for _ in range(_DISK_BYTES >> 20):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return _DISK_BYTES / (time.perf_counter() - start)


def hub_access(*, ask: bool) -> Section:
    """Whether models can be fetched by their hub ids, and as whom."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError

    section = Section(name="hub")
    if HF_HUB_OFFLINE or not ask:
        reason = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "hub=false"
        section.add("note", f"not asked ({reason}): models are taken from local directories and the cache alone")
        return section
    import httpx

    try:
        httpx.head(ENDPOINT, timeout=10.0)
        section.figures["reachable"] = True
        who = HfApi().whoami()["name"] if get_token() else None
    except httpx.HTTPError as error:
        section.figures["reachable"] = False
        section.add(
            "warning",
            f"{ENDPOINT} does not answer ({type(error).__name__}). Name models by local directories, or look at the network "
            "(HTTPS_PROXY, HF_ENDPOINT)",
        )
    except HfHubHTTPError as error:
        section.add(
            "warning", f"the hub refuses the token that is set ({str(error).splitlines()[0]}). Run `hf auth login` anew"
        )
    else:
        section.figures["user"] = who
        section.add(
            "ok", f"{ENDPOINT} answers, asked {f'as {who}' if who else 'without a token: enough for public models'}"
        )
    return section
