"""The embedded defaults: tiny checkpoints, the shapes manifest and benchmark, made in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmkit.demo.checkpoints import TinyPaths, tiny_checkpoints
from vlmkit.demo.shapes import Shapes, shapes, text_only_guesser

if TYPE_CHECKING:
    from vlmkit.data.datamodule import PackedDataModule
    from vlmkit.model.assembly import Assembly


def tiny_assembly(**settings: Any) -> Assembly:
    """The tiny pair, to be assembled like a real one; `settings` as `Assembly` takes them."""
    from vlmkit.model.assembly import Assembly

    paths = tiny_checkpoints()
    return Assembly(
        vision_encoder=paths.vision_language, language_model=paths.language_model, template=None, **settings
    )


def shapes_datamodule(**settings: Any) -> PackedDataModule:
    """The shapes manifest as training data; `settings` as `PackedDataModule` takes them."""
    from vlmkit.data.datamodule import PackedDataModule

    drawn = shapes()
    return PackedDataModule(
        name="shapes",
        sources=[drawn.train],
        root=drawn.root,
        allow_absolute_paths=False,
        image_min_pixels=None,
        image_max_pixels=None,
        video_min_pixels=None,
        video_max_pixels=None,
        video_fps=None,
        video_max_frames=None,
        video_reader="auto",
        media_timeout_seconds=None,
        overlong="error",
        on_bad_row="error",
        max_bad_rows=None,
        on_bad_media="error",
        max_bad_media=None,
        **settings,
    )


__all__ = [
    "Shapes",
    "TinyPaths",
    "shapes",
    "shapes_datamodule",
    "text_only_guesser",
    "tiny_assembly",
    "tiny_checkpoints",
]
