"""The patch embedding as a matrix product.

The stock module is a Conv3d whose stride equals its kernel: a linear map, and several times slower as a convolution.
A still repeats one image along time, so the two temporal halves of the kernel are added first (differentiably): half
the input and half the product. Same weights under the same names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class PatchNormalizer(nn.Module):
    """Scale and shift bytes as the stock processor does, on the device, in fp32: (byte - mean) / std."""

    def __init__(self, *, mean: list[float], std: list[float]) -> None:
        super().__init__()
        # Lists, not buffers: a buffer would be cast to bf16 with the model, and no key of ours joins the state dict.
        self.mean, self.std = mean, std

    def forward(self, patches: Tensor) -> Tensor:
        """Normalise uint8 patches; floating-point patches are taken as normalised.

        Args:
            patches: (num_patches, 3 * values_per_channel), channel first.

        Returns:
            The same shape, float32 where the input was uint8.
        """
        if patches.dtype != torch.uint8:
            return patches
        mean = torch.tensor(self.mean, device=patches.device)[:, None]
        std = torch.tensor(self.std, device=patches.device)[:, None]
        planes = patches.unflatten(1, (3, -1)).to(torch.float32)
        return planes.sub_(mean).div_(std).flatten(1)


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
