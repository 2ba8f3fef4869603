"""Layers that several networks share. What belongs here: stateless shapes of layers. Not here: whole networks."""

import itertools
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medsam_core.base.geometry import EMBEDDING_CHANNELS


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of (B, C, H, W), at each position apart."""

    def __init__(self, channels: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        channels_last = x.permute(0, 2, 3, 1)
        normalised = F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.epsilon)
        return normalised.permute(0, 3, 1, 2)


class ConvNorm(nn.Sequential):
    """A convolution without bias that keeps the grid at stride 1, and batch norm."""

    def __init__(self, channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(c=convolution, bn=nn.BatchNorm2d(out_channels)))

    def fuse(self) -> nn.Conv2d:
        """Return one convolution with what both compute in evaluation mode.

        The name is timm's, whose conversion of whole models asks every module for it.
        """
        convolution, norm = self.get_submodule("c"), self.get_submodule("bn")
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise TypeError(f"expected a convolution and its batch norm, found {convolution} and {norm}")
        return fuse_conv_bn_eval(convolution.eval(), norm.eval())


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int, depth: int) -> None:
        super().__init__()
        widths = [in_features, *[hidden_features] * (depth - 1), out_features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        out: Tensor = last(x)
        return out


def embedding_neck(channels: int) -> nn.Sequential:
    """Build the neck of SAM's encoders: 1x1 convolution, norm, 3x3 convolution, norm.

    It maps (B, channels, h, w) to (B, 256, h, w).
    """
    return nn.Sequential(
        nn.Conv2d(channels, EMBEDDING_CHANNELS, kernel_size=1, bias=False),
        LayerNorm2d(EMBEDDING_CHANNELS),
        nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(EMBEDDING_CHANNELS),
    )
