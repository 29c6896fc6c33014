"""What is asked of vLLM: the tokens that our one renderer writes, media as its own processor takes them, greedy decoding.

vLLM takes token ids in which each image or video is still one token, and expands it with the processor of the model's
directory (vLLM documentation, "Multi-Modal Data Processing", tokenized prompt inputs). So a request holds the tokens
before expansion, decoded media at their own size, and the pixel limits in force; videos come as the frames that we
sampled, with their numbers and rate, and `do_sample_frames` off, so that nothing is sampled twice. vLLM tells the
tokens after expansion with its answer: they must be the ones that the model was trained on, which `check_prompt` holds
it to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmkit.conversation import Conversation, ImagePart, VideoPart
from vlmkit.errors import DataError, VlmkitError
from vlmkit.generation.backend import GenerationParams
from vlmkit.processing.encode import MediumLayout, prompt_tokens
from vlmkit.processing.media import load_frames, load_image
from vlmkit.processing.processor import Processor

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt for vLLM.

    Attributes:
        prompt: `prompt_token_ids`, and where there are media `multi_modal_data` and `mm_processor_kwargs`.
        expanded: The token ids that vLLM must make of it.
        name: What messages call it.
    """

    prompt: dict[str, Any]
    expanded: list[int]
    name: str


def make_request(conversation: Conversation, processor: Processor) -> Request:
    """The request that asks a conversation.

    Raises:
        DataError: a medium cannot be read, or the template refuses the conversation. With the conversation's origin.
    """
    tokens = prompt_tokens(conversation, processor)
    prompt: dict[str, Any] = {"prompt_token_ids": tokens.written}
    if conversation.media:
        try:
            prompt["multi_modal_data"] = _media(conversation.media, tokens.layouts, processor)
        except DataError as error:
            raise (error.at(conversation.origin) if conversation.origin else error) from error.__cause__
        prompt["mm_processor_kwargs"] = processor_settings(set(prompt["multi_modal_data"]), processor)
    return Request(prompt=prompt, expanded=tokens.expanded, name=str(conversation.origin or "a question"))


def sampling_settings(params: GenerationParams, *, ends: Sequence[int]) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams`: greedy, with our ends and length.

    Args:
        params: How answers are decoded.
        ends: Ids of the tokens that end an answer.
    """
    return {"temperature": 0.0, "max_tokens": params.max_new_tokens, "stop_token_ids": list(ends), "detokenize": False}


def processor_settings(kinds: set[str], processor: Processor) -> dict[str, Any]:
    """`mm_processor_kwargs` of a request.

    Settings reach images and videos alike, whose limits differ: a request with both goes by the files of the model's
    directory, where the same limits stand.

    Args:
        kinds: What the request holds: `image`, `video` or both.
        processor: Whose limits are in force.
    """
    told: dict[str, Any] = {"do_sample_frames": False} if "video" in kinds else {}
    if len(kinds) == 1:
        (kind,) = kinds
        least, most = (int(processor.limits()[f"{kind}_{end}_pixels"]) for end in ("min", "max"))
        told["size"] = {"shortest_edge": least, "longest_edge": most}
    return told


def check_prompt(request: Request, given: Sequence[int] | None) -> None:
    """Compare the tokens that vLLM made of a request with those the model knows.

    Args:
        request: As it was sent.
        given: `prompt_token_ids` of vLLM's answer; None: it does not tell.

    Raises:
        VlmkitError: they differ, so the answer would not be the model's.
    """
    if given is None or list(given) == request.expanded:
        return
    pairs = zip(given, request.expanded, strict=False)
    place = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(given), len(request.expanded)))
    raise VlmkitError(
        f"backend=vllm: {request.name}: vLLM made {len(given)} tokens of the prompt, the model's own processor "
        f"{len(request.expanded)}; they part at token {place}. Releases of vLLM that leave out the marks around a video, "
        "or read the pixel limits in another way, do so: take a newer one, or backend=hf."
    )


def _media(
    parts: Sequence[ImagePart | VideoPart], layouts: Sequence[MediumLayout], processor: Processor
) -> dict[str, list[Any]]:
    """Images and videos by kind, each in the order in which they are said."""
    found: dict[str, list[Any]] = {}
    for part, place in zip(parts, layouts, strict=True):
        if isinstance(part, ImagePart):
            found.setdefault("image", []).append(_picture(part))
        else:
            found.setdefault("video", []).append(_video(part, place, processor))
    return found


def _picture(part: ImagePart) -> Image:
    from PIL import Image

    return Image.fromarray(load_image(part).permute(1, 2, 0).contiguous().numpy())


def _video(part: VideoPart, place: MediumLayout, processor: Processor) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """(frames, height, width, 3) uint8, and the metadata from which vLLM writes the time stamps."""
    frames = load_frames(part, list(place.frames), processor.reading).permute(0, 2, 3, 1).contiguous().numpy()
    last = max(place.frames) + 1
    return frames, {
        "fps": place.fps,
        "frames_indices": list(place.frames),
        "total_num_frames": last,
        "duration": last / place.fps,
        "video_backend": "vlmkit",
        "do_sample_frames": False,
    }
