"""A file that a user can be handed runs code when it is read: none does, wherever in it a pickle is planted."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save

from tests.training import forked
from tests.training.conftest import REPOSITORY, small, write_manifest
from tests.training.small_run import prepared
from vlmkit.errors import CheckpointError, VlmkitError
from vlmkit.training.callbacks.checkpointer import _PatientIO
from vlmkit.training.shards import check_names, load_shards, load_weights, read_metadata
from vlmkit.training.state import KEY, RunState, read_state

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Hostile:
    """Makes a folder when it is unpickled, as any command could be run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def hostile(canary: Path) -> Hostile:
    return Hostile(canary)


def model() -> nn.Module:
    """What the checkpoints below are of."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-3)


def rest(**more: Any) -> dict[str, Any]:
    """What is not sharded."""
    state = RunState(step=3, consumed_packs=6, plan_key="k", freeze={}, contract=None).to_checkpoint([])
    return {KEY: state, "callbacks": {}, "loops": {}, **more}


def write_file(path: Path, **more: Any) -> Path:
    """A checkpoint that is one file."""
    module = model()
    torch.save({**rest(), "state_dict": module.state_dict(), "optimizer_states": [], **more}, path)
    return path


def write_directory(path: Path, **settings: Any) -> Path:
    """A sharded checkpoint, as PyTorch writes it; settings of its optimiser can be of any kind."""
    module = model()
    names = [name for name, _ in module.named_parameters()]
    flat: dict[str, Any] = {
        f"state.{name}.{what}": torch.zeros_like(p)
        for name, p in module.named_parameters()
        for what in ("exp_avg", "exp_avg_sq")
    }
    flat |= {f"state.{name}.step": torch.tensor(1.0) for name in names}
    group = {**optimizer_of(module).state_dict()["param_groups"][0], **settings}
    group.pop("params")
    flat |= {f"param_groups.{name}.{key}": value for name in names for key, value in group.items()}
    save({"model": dict(module.named_parameters()), "optimizer_0": flat}, checkpoint_id=path, no_dist=True)
    torch.save(rest(), path / "meta.pt")
    return path


PLANTED: dict[str, Callable[[Path, Hostile], Path]] = {
    "a file that is a pickle": lambda place, hostile: _written(place / "x.ckpt", pickle.dumps(hostile)),
    "a value of a file": lambda place, hostile: write_file(place / "x.ckpt", extra=hostile),
    "the weights of a file": lambda place, hostile: write_file(place / "x.ckpt", state_dict=hostile),
    "meta.pt that is a pickle": lambda place, hostile: _planted(place, "meta.pt", pickle.dumps(hostile)),
    "a value of meta.pt": lambda place, hostile: _meta(place, hostile),
    ".metadata": lambda place, hostile: _planted(place, ".metadata", pickle.dumps(hostile)),
    "a value of .metadata": lambda place, hostile: _metadata(place, hostile),
    "a setting of the optimiser": lambda place, hostile: write_directory(place / "x.ckpt", lr=hostile),
    "a file of shards": lambda place, hostile: _planted(place, "__0_0.distcp", pickle.dumps(hostile)),
}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _planted(place: Path, name: str, content: bytes) -> Path:
    path = write_directory(place / "x.ckpt")
    assert (path / name).is_file()
    (path / name).write_bytes(content)
    return path


def _meta(place: Path, hostile: Hostile) -> Path:
    path = write_directory(place / "x.ckpt")
    torch.save(rest(extra=hostile), path / "meta.pt")
    return path


def _metadata(place: Path, hostile: Hostile) -> Path:
    path = write_directory(place / "x.ckpt")
    metadata = pickle.loads((path / ".metadata").read_bytes())
    metadata.planner_data = hostile
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    return path


def _load_shards(path: Path) -> None:
    module = model()
    load_shards(path, module=module, optimizers=[optimizer_of(module)])


READERS: dict[str, Callable[[Path], object]] = {
    "its state": read_state,
    "Lightning": lambda path: _PatientIO().load_checkpoint(path, weights_only=False),
    "its weights": lambda path: load_weights(path, model()),
    "a shared model": _load_shards,
    "its names": lambda path: (
        check_names(path, {name for name, _ in model().named_parameters()}) if path.is_dir() else None
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", ["file", "directory"])
def test_what_vlmkit_writes_is_read(tmp_path, form, reader):
    path = tmp_path / "x.ckpt"
    write_file(path, optimizer_states=[optimizer_of(model()).state_dict()]) if form == "file" else write_directory(path)
    READERS[reader](path)


@pytest.mark.parametrize("place", PLANTED)
def test_no_reader_of_checkpoints_runs_what_is_planted(tmp_path, hostile, canary, place):
    path = PLANTED[place](tmp_path, hostile)
    refused = []
    for name, read in READERS.items():
        try:
            read(path)
        except CheckpointError as error:
            refused.append(str(error))
        assert not canary.exists(), f"{name} ran it"
    assert refused, "nobody reads this place"
    damaged = place in ("a file that is a pickle", "meta.pt that is a pickle", "a file of shards")
    assert any("can run code (" in message for message in refused) or damaged, refused
    assert all(str(path) in message for message in refused)


def test_a_plain_unpickler_would_have_run_it(hostile, canary):
    pickle.loads(pickle.dumps(hostile))
    assert canary.is_dir()


def test_metadata_that_names_files_elsewhere_is_refused(tmp_path):
    path = write_directory(tmp_path / "x.ckpt")
    content = pickle.loads((path / ".metadata").read_bytes())
    for stored in content.storage_data.values():
        stored.relative_path = "../other/__0_0.distcp"
    (path / ".metadata").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"its tensors are in '\.\./other/__0_0\.distcp', outside"):
        read_metadata(path)


@pytest.mark.parametrize("trainer", ["single", "fsdp"])
def test_a_run_is_not_resumed_from_it_and_says_why(tmp_path, tiny, hostile, canary, trainer):
    """The checkpoint of a real run, exchanged for one that is like it but for an object more."""
    settings = small(write_manifest(tmp_path, 4), tmp_path / "run", f"trainer={trainer}", "trainer.accelerator=cpu")
    more = ["trainer.devices=1", "save.every_n_steps=1", "save.keep=0"]
    forked.run(*settings, *more, output=tmp_path / "out")
    path = tmp_path / "run" / "checkpoints" / "step-000001.ckpt"
    if trainer == "fsdp":
        path = path / ".metadata"
        metadata = pickle.loads(path.read_bytes())
        metadata.planner_data = hostile
        path.write_bytes(pickle.dumps(metadata))
    else:
        content = torch.load(path, weights_only=True)
        torch.save(content | {"extra": hostile}, path)
    (tmp_path / "run" / "checkpoints" / "step-000002.ckpt").rename(tmp_path / "newer.ckpt")
    told = forked.run(*settings, *more, "resume_from=auto", output=tmp_path / "out", status=1)
    assert "can run code (" in told
    assert str(path) in told
    assert "Traceback" not in told
    assert not canary.exists()


def test_no_file_of_the_cache_runs_what_is_planted(tmp_path, tiny, hostile, canary):
    manifest, cache = write_manifest(tmp_path, 4), tmp_path / "cache"
    packs = len(prepared(manifest, tiny.vision_language, cache).plan)
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files
    for content in (pickle.dumps(hostile), _saved(hostile, tmp_path)):
        for path in files:
            path.write_bytes(content)
        try:
            assert len(prepared(manifest, tiny.vision_language, cache).plan) == packs
        except VlmkitError:
            shutil.rmtree(cache)
        assert not canary.exists()


def _saved(hostile: Hostile, folder: Path) -> bytes:
    torch.save(hostile, folder / "saved")
    return (folder / "saved").read_bytes()


def test_the_config_of_a_run_calls_nothing_that_is_not_in_this_commands_own(tmp_path, tiny, canary):
    """`init_from=RUN` takes its data and model over: a `_target_` in there is called only where it is known here."""
    manifest, run_dir = write_manifest(tmp_path, 4), tmp_path / "handed"
    forked.run(*small(manifest, run_dir, "trainer.max_steps=1"), output=tmp_path / "out")
    saved = yaml.safe_load((run_dir / "config.yaml").read_text())
    mine = tmp_path / "mine"
    up = "../" * len(REPOSITORY.parts)
    mine.with_suffix(".yaml").write_text(yaml.safe_dump({"_target_": "os.mkdir", "path": str(canary)}))
    started = [f"init_from={run_dir}", f"run_dir={tmp_path / 'next'}", "trainer.max_steps=1", "data.num_workers=0"]
    for changes, message in (
        ({"data": {"_target_": "os.mkdir", "path": str(canary)}}, "data of that run has os.mkdir"),
        (
            {"data": {**saved["data"], "video_reader": {"_target_": "vlmkit.storage.os.mkdir", "path": str(canary)}}},
            "os.mkdir",
        ),
        ({"choices": {**saved["choices"], "data": f"{up}{mine.relative_to('/')}"}}, "data of that run has vlmkit."),
    ):
        (run_dir / "config.yaml").write_text(yaml.safe_dump({**saved, **changes}))
        told = forked.run(*started, output=tmp_path / "out", status=1)
        assert message in told
        assert not canary.exists()
    (run_dir / "config.yaml").write_text(yaml.safe_dump(saved))
    forked.run(*started, output=tmp_path / "out")
    forked.run(f"init_from={tmp_path / 'next'}", *started[2:], f"run_dir={tmp_path / 'third'}", output=tmp_path / "out")


def test_nothing_in_the_source_unpickles_files_freely():
    """Whoever adds a call that can is made to look here."""
    found = []
    for path in sorted((REPOSITORY / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            free = called.endswith(("torch.load", "jit.load")) and given.get("weights_only") != "True"
            if (
                free
                or called.startswith(("pickle.", "marshal.", "shelve.", "joblib.", "dill."))
                or "allow_pickle" in given
            ):
                found.append(f"{path.name}:{node.lineno} {called}")
            if called in ("FileSystemReader", "DefaultLoadPlanner", "Unpickler", "yaml.load", "yaml.unsafe_load"):
                assert called == "yaml.load", f"{path.name}:{node.lineno} {called}"
                assert given.get("Loader") in ("yaml.BaseLoader", "yaml.SafeLoader"), f"{path.name}:{node.lineno}"
    assert not found
