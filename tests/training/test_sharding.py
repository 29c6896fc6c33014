"""Two ranks that share a model do what one process does, whatever their batches hold; checkpoints fit any number."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
import torch

from tests.training.conftest import write_manifest
from tests.training.gradients import reference_gradients
from tests.training.two_ranks import start_two
from vlmkit.conversation import Conversation, ImagePart, TextPart, Turn, VideoPart
from vlmkit.data.collation import PackInfo, pack_samples
from vlmkit.errors import CheckpointError
from vlmkit.model.assembly import WholeCheckpoint
from vlmkit.model.packed import PackedVLM
from vlmkit.processing.encode import encode_example
from vlmkit.training.shards import (
    NAMED,
    check_whole,
    in_order,
    load_weights,
    read_whole,
    remove_checkpoint,
    shard_rows,
)

STAGE1 = ["vision_encoder", "language_model"]
SCENARIOS = {
    "ddp": {"batch_size": 2, "accumulate": 2},
    "fsdp": {"batch_size": 2, "accumulate": 2, "reduce_every_micro_batch": True},
    "fsdp, reduced once, recomputed": {
        "batch_size": 2,
        "accumulate": 2,
        "reduce_every_micro_batch": False,
        "checkpointing": True,
    },
    "stage 1": {
        "batch_size": 2,
        "accumulate": 2,
        "reduce_every_micro_batch": True,
        "frozen": STAGE1,
        "checkpointing": True,
    },
}
UNLIKE = ("text", "still", "video", "both", "silent")


@pytest.fixture(scope="module")
def untied(tiny, tmp_path_factory):
    """The tiny checkpoint with a head of its own."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny.vision_language)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
    directory = tmp_path_factory.mktemp("untied")
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def batches(processor, pictures, clip):
    """Packs that differ in what they hold."""
    still, video = ImagePart(pictures[0]), VideoPart(clip)
    asked = {"text": (), "still": (still,), "video": (video,), "both": (still, video, ImagePart(pictures[1]))}
    made = {}
    for number, (kind, media) in enumerate(asked.items()):
        said = (Turn("user", (*media, TextPart("what?"))), Turn("assistant", (TextPart("nothing much"),)))
        info = PackInfo(pack=number, rows=(number,), sources=(0,), step_supervised_tokens=8)
        made[kind] = pack_samples([encode_example(Conversation(said), processor, pixels="uint8")], processor, info)
    idle = PackInfo(pack=-1, rows=(), sources=(), step_supervised_tokens=8)
    return made | {"silent": pack_samples([], processor, idle)}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Eight rows, three without an image."""
    return write_manifest(tmp_path_factory.mktemp("rows"), 8, text_only=frozenset({0, 1, 5}))


@pytest.fixture(scope="module")
def told(tiny, untied, cache, batches, rows, tmp_path_factory):
    """What two ranks found, in one start of them."""
    folder = tmp_path_factory.mktemp("two")
    torch.save(batches, folder / "batches.pt")
    asked = {
        "rows": str(rows), "checkpoint": str(tiny.vision_language), "cache": str(cache), "out": str(folder),
        "tied": str(tiny.vision_language), "untied": str(untied), "batches": str(folder / "batches.pt"),
        "scenarios": SCENARIOS,
    }  # fmt: skip
    (folder / "asked.json").write_text(json.dumps(asked))
    start_two("tests.training.two_ranks", str(folder / "asked.json"))
    return torch.load(folder / "asked.pt", weights_only=False) | {"folder": folder}


@pytest.fixture(scope="module")
def wanted(rows, tiny, cache):
    return reference_gradients(rows, tiny.vision_language, cache)


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_ranks_with_unlike_batches_meet_and_give_the_mean(told, head):
    """No image, no video, stills and video, no supervised token: no pairing hangs, none is inexact."""
    found = told["pairs"][head]
    assert set(found) == {f"{one} with {other}" for one, other in combinations(UNLIKE, 2)}
    assert max(found.values()) < 1e-10


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_step_on_two_ranks_has_the_gradients_of_one_process(told, wanted, name):
    found = told["steps"][name]
    assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-10)
    frozen = SCENARIOS[name].get("frozen", ())
    kept = {key for key in wanted["grads"] if not frozen or "merger" in key}
    assert found["grads"].keys() == kept
    for key in kept:
        torch.testing.assert_close(found["grads"][key], wanted["grads"][key], rtol=0, atol=1e-10, msg=key)
    squares = sum(float(wanted["grads"][key].square().sum()) for key in kept)
    assert sum(norm**2 for norm in found["norms"].values()) == pytest.approx(squares, rel=1e-6)


def test_clipped_and_updated_weights_equal_ddps(told):
    one, other = told["steps"]["ddp"]["after"], told["steps"]["fsdp"]["after"]
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-10, msg=name)


@pytest.fixture
def one_process(untied, processor):
    hf = WholeCheckpoint(path=untied, processor=None).build(dtype=torch.float64).model
    return PackedVLM(hf, pixel_mean=processor.pixel_mean, pixel_std=processor.pixel_std)


@pytest.mark.parametrize("form", ["directory", "file"])
def test_weights_of_either_form_are_read_in_one_process(told, one_process, form):
    path = told["folder"] / "untied" / {"directory": "step-000001.ckpt", "file": "step-000002.ckpt"}[form]
    load_weights(path, one_process)
    before = torch.load(told["folder"] / "untied" / "before.pt")["model"]
    assert all(torch.equal(parameter, before[name]) for name, parameter in one_process.named_parameters())
    one_process.hf.model.visual.requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"holds \d+ tensors that are not trained here"):
        load_weights(path, one_process)


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_a_sharded_checkpoint_is_what_one_process_would_have_written(told, one_process, head):
    """Weights and AdamW's state, bit for bit and in its order, whatever the order by name."""
    content = read_whole(told["folder"] / head / "step-000001.ckpt")
    before = torch.load(told["folder"] / head / "before.pt")
    assert content["step"] == 1
    assert content["state_dict"].keys() == before["model"].keys()
    assert all(torch.equal(tensor, before["model"][name]) for name, tensor in content["state_dict"].items())
    names = [list(before["model"])[1:], list(before["model"])[:1]]  # two groups, out of order
    parameters = [[torch.nn.Parameter(before["model"][name].clone()) for name in group] for group in names]
    optimizer = torch.optim.AdamW([{"params": group} for group in parameters], lr=0.5)
    (named,) = content[NAMED]
    optimizer.load_state_dict(in_order(named, names))
    for group, kept in zip(names, parameters, strict=True):
        for name, parameter in zip(group, kept, strict=True):
            assert torch.equal(optimizer.state[parameter]["exp_avg"], before["moments"][name]), name
            assert float(optimizer.state[parameter]["step"]) == 1
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_directory_that_is_not_whole_is_refused(told, tmp_path):
    (tmp_path / "step-000001.ckpt").mkdir()
    (tmp_path / "step-000001.ckpt" / ".metadata").touch()
    for read in (read_whole, check_whole):
        with pytest.raises(CheckpointError, match=r"step-000001\.ckpt: not a whole sharded checkpoint \(it lacks meta"):
            read(tmp_path / "step-000001.ckpt")


@pytest.mark.parametrize(("num_rows", "shards"), [(7, [(0, 4), (4, 7)]), (1, [(0, 1), (1, 1)]), (8, [(0, 4), (4, 8)])])
def test_shards_are_equal_but_for_the_last(num_rows, shards):
    assert [shard_rows(num_rows, rank=rank, num_ranks=2) for rank in range(2)] == shards


def test_a_rank_reads_its_rows_and_no_others(tiny, tmp_path):
    from vlmkit.model.tensors import TensorReader

    reader = TensorReader(tiny.vision_language)
    for name in reader.names:
        whole, cut = reader.read(name), len(reader.read(name)) // 3
        assert torch.equal(torch.cat([reader.read(name, (0, cut)), reader.read(name, (cut, len(whole)))]), whole)


def test_an_assembly_is_sketched_as_it_is_built(tiny):
    from tests.model.conftest import assembly

    for settings in ({"merger_init": "crop"}, {"merger_init": "random"}):
        made, sketch = (getattr(assembly(tiny, **settings), how)(dtype=torch.float32) for how in ("build", "sketch"))
        assert sketch.provenance == made.provenance
        sketched = dict(sketch.model.named_parameters())
        assert all(parameter.is_meta for parameter in sketched.values())
        for name, parameter in made.model.named_parameters():
            assert sketched[name].shape == parameter.shape
            assert torch.equal(sketch.read(name, 1, 3), parameter[1:3]), name


def test_a_checkpoint_is_removed_whether_file_or_directory(tmp_path):
    (tmp_path / "step-000001.ckpt").write_text("")
    (tmp_path / "step-000002.ckpt").mkdir()
    (tmp_path / "step-000002.ckpt" / "meta.pt").write_text("")
    for number in (1, 2, 3):
        remove_checkpoint(tmp_path / f"step-00000{number}.ckpt")
    assert not list(tmp_path.iterdir())
