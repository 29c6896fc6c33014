"""Answers from a served model, through an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlmkit.conversation import Conversation
from vlmkit.errors import ConfigError, DataError
from vlmkit.generation.backend import Generation, GenerationParams
from vlmkit.generation.endpoint import ChatEndpoint, RequestError, in_parallel
from vlmkit.generation.messages import VIDEO_FORMS, VideoForm, to_messages
from vlmkit.processing.video import VideoReading


class ServerBackend:
    """Greedy decoding by whatever is served: vLLM, SGLang, llama.cpp, a hosted model.

    Prompts are those of the other backends; the server's own chat template and image rules are applied to them.

    Args:
        base_url: Up to where `/chat/completions` follows, mostly `.../v1`.
        model: As the server names it.
        api_key_env: Name of the environment variable that holds the key; None: none is sent.
        timeout_seconds: Longest wait for one answer.
        retries: Further tries of a request that met a time-out or a fault of the server.
        retry_seconds: Wait before the first retry; it doubles.
        concurrency: Requests at a time.
        video: `frames` or `video_url`; see `to_messages`.
        video_frames: Frames of a video, where they are sent as images.
        extra_body: Further fields of every request; null takes one of ours out.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None,
        timeout_seconds: float,
        retries: int,
        retry_seconds: float,
        concurrency: int,
        video: str,
        video_frames: int,
        extra_body: Mapping[str, Any],
    ) -> None:
        if video not in VIDEO_FORMS:
            raise ConfigError(f"backend.video={video}: choose {' or '.join(VIDEO_FORMS)}.")
        if video_frames < 1:
            raise ConfigError(f"backend.video_frames={video_frames}: must be at least 1.")
        self.endpoint = ChatEndpoint(
            where="backend",
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            timeout_seconds=timeout_seconds,
            retries=retries,
            retry_seconds=retry_seconds,
            concurrency=concurrency,
        )
        self.video: VideoForm = video
        self.video_frames = video_frames
        self.extra_body = dict(extra_body)
        self._reading = VideoReading()

    @property
    def identity(self) -> dict[str, str]:
        """The served name, all that is known of the model, and what else of a request decides an answer.

        The address is no part of it: the same model may be served elsewhere tomorrow.
        """
        video = f"{self.video_frames} frames" if self.video == "frames" else self.video
        told = {
            "backend": "server",
            "model": self.endpoint.model,
            "weights": "not known: a served model is known by its name only",
            "video": video,
        }
        extra = json.dumps(self.extra_body, sort_keys=True, default=str)
        return told | ({"extra_body": extra} if self.extra_body else {})

    def generate(self, conversations: Sequence[Conversation], params: GenerationParams) -> list[Generation]:
        """Answer each conversation, in order; one that cannot be sent or is refused comes back with its error.

        Raises:
            EndpointError: there is no server, it wants another key, or has no such model.
        """
        started = time.perf_counter()
        found: dict[int, Generation] = {}
        for (number, _), answer in in_parallel(
            lambda item: self._answer(item[1], params), enumerate(conversations), workers=self.endpoint.concurrency
        ):
            found[number] = answer
        share = (time.perf_counter() - started) / max(1, len(found))
        return [replace(found[number], seconds=share) for number in range(len(conversations))]

    def _answer(self, conversation: Conversation, params: GenerationParams) -> Generation:
        try:
            messages = to_messages(conversation, video=self.video, num_frames=self.video_frames, reading=self._reading)
            fields = {"max_tokens": params.max_new_tokens, "temperature": 0, **self.extra_body}
            reply = self.endpoint.complete(messages, fields=fields)
        except DataError as error:
            return Generation(text="", num_tokens=0, seconds=0.0, error=str(error))
        except RequestError as error:
            return Generation(text="", num_tokens=0, seconds=0.0, error=str(error), transient=error.transient)
        return Generation(text=reply.text, num_tokens=reply.completion_tokens, seconds=0.0)
