"""The patch embedding as a matrix product.

The stock module is a Conv3d whose stride equals its kernel: a linear map, and several times slower as a convolution.
A still repeats one image along time, so the two temporal halves of the kernel are added first (differentiably): half
the input and half the product. Same weights under the same names.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class PatchNormalizer(nn.Module):
    """Scale and shift bytes as the stock processor does, on the device, in fp32: (byte - mean) / std.

    Attributes:
        mean, std: (3,) fp32 buffers, a value per channel; no keys of the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self._statistics = {"mean": mean, "std": std}
        self._restore_buffers(torch.get_default_device())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PatchNormalizer:
        """Follow a move or a cast of the model (`to`, `to_empty`, `bfloat16`) to the device alone.

        A cast to bf16 would round mean and deviation, and a build on the meta device leaves them without values.
        """
        super()._apply(fn, recurse)
        self._restore_buffers(self.mean.device)
        return self

    def _restore_buffers(self, device: torch.device) -> None:
        for name, values in self._statistics.items():
            setattr(self, name, nn.Buffer(torch.tensor(values, dtype=torch.float32, device=device), persistent=False))

    def forward(self, patches: Tensor) -> Tensor:
        """Normalise uint8 patches; floating-point patches are taken as normalised.

        Args:
            patches: (num_patches, 3 * values_per_channel), channel first.

        Returns:
            The same shape, float32 where the input was uint8.
        """
        if patches.dtype != torch.uint8:
            return patches
        planes = patches.unflatten(1, (3, -1)).to(torch.float32)
        return planes.sub_(self.mean[:, None]).div_(self.std[:, None]).flatten(1)


def embed_patches(proj: nn.Conv3d, still_patches: Tensor, video_patches: Tensor) -> Tensor:
    """Embed stills and videos with the stock convolution's weights, stills first.

    Args:
        proj: Weight (width, 3, temporal_patch, patch, patch).
        still_patches: (num_still_patches, 3 * patch**2), normalised, one temporal copy.
        video_patches: (num_video_patches, 3 * temporal_patch * patch**2), normalised.

    Returns:
        (num_still_patches + num_video_patches, width) in the weights' dtype.
    """
    weight, bias = proj.weight, proj.bias
    embedded: list[Tensor] = []
    if len(still_patches):
        embedded.append(linear(still_patches.to(weight.dtype), weight.sum(2).flatten(1), bias))
    if len(video_patches):
        embedded.append(linear(video_patches.to(weight.dtype), weight.flatten(1), bias))
    return torch.cat(embedded)
