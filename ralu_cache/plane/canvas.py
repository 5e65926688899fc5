"""The canvas and its token layouts: which tokens cover the latent image, and how to go there and back.

The canvas is the full-size latent image ``(B, C, H, W)``. A *fine* token covers ``patch x patch`` latent pixels; a
*coarse* token covers the 2x2 fine tokens of one *cell* and is stored as 2x2 equal latent pixels, so that
``pool(replicate(x)) == x`` bit for bit and Euler steps commute with the replication. Pure tensors.

A video is one tall image: its F frames stand one below the other, ``(B, C, F H, W)``. With an even number of token rows
a frame, no cell straddles two frames; what looks beyond a cell must be told of the frames.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import InitVar, dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


def pool(image: Tensor) -> Tensor:
    """Mean of each 2x2 block: (B, C, H, W) -> (B, C, H/2, W/2)."""
    return F.avg_pool2d(image, 2)


def replicate(image: Tensor) -> Tensor:
    """Nearest upsampling, the right inverse of `pool`: (B, C, h, w) -> (B, C, 2h, 2w)."""
    return image.repeat_interleave(2, -1).repeat_interleave(2, -2)


def coarsen(image: Tensor) -> Tensor:
    """Projection on coarse canvases: every 2x2 block replaced by its mean, same shape."""
    return replicate(pool(image))


def patchify(image: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, H/p * W/p, C*p*p), raster order, channels ordered (c, row, column) as FLUX packs them."""
    b, c, h, w = image.shape
    grid = image.reshape(b, c, h // patch, patch, w // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Inverse of `patchify` for a grid of `rows` x `columns` tokens."""
    b, _, d = tokens.shape
    grid = tokens.reshape(b, rows, columns, d // patch**2, patch, patch)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, d // patch**2, rows * patch, columns * patch)


def split_frames(image: Tensor, frames: int) -> Tensor:
    """(B, C, F H, W) -> (B F, C, H, W), a video's frames in order."""
    return image.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1)


def join_frames(images: Tensor, frames: int) -> Tensor:
    """Inverse of `split_frames`."""
    return images.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2, 3)


def _gather(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def _scatter(tokens: Tensor, index: Tensor, size: int) -> Tensor:
    target = tokens.new_zeros(tokens.shape[0], size, tokens.shape[-1])
    return target.scatter(1, index[..., None].expand_as(tokens), tokens)


def _places(mask: Tensor, count: int) -> Tensor:
    """(B, Y, X) bool, `count` True in each sample -> (B, count) raster indices; `nonzero` would wait for the device."""
    order = mask.flatten(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return order[:, :count].contiguous()


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Which cells of the plane are refined, per sample; two layouts are the same only if they are the same object.

    `refined` is (B, Y, X) bool over the Y x X coarse cells; every sample refines equally many. Token order: the
    coarse tokens of the unrefined cells in raster order, then the fine tokens of the refined ones in raster order of
    the fine grid; an all-fine layout is therefore the stock order. `frames` of equally many cells stand one below the
    other. `count` is the number of refined cells of a sample; who knows it says so (`counted`), for to count them waits
    for the device. Raises ValueError for unequal counts, or frames that do not divide Y.
    """

    refined: Tensor
    patch: int
    frames: int = field(default=1, kw_only=True)
    count: int = field(init=False)
    counted: InitVar[int | None] = field(default=None, kw_only=True)

    def __post_init__(self, counted: int | None) -> None:
        if self.refined.dtype != torch.bool or self.refined.ndim != 3:
            raise ValueError(
                f"refined must be a (B, Y, X) bool tensor, got {tuple(self.refined.shape)} {self.refined.dtype}"
            )
        counts = self.refined.flatten(1).sum(1).tolist() if counted is None else [counted]
        if len(set(counts)) > 1:
            raise ValueError(f"every sample must refine equally many cells, got {counts}")
        object.__setattr__(self, "count", counts[0])
        if self.frames < 1 or self.cells[0] % self.frames:
            raise ValueError(f"{self.cells[0]} rows of cells do not divide into {self.frames} frames")

    @classmethod
    def coarse(
        cls, batch: int, rows: int, columns: int, patch: int, device: torch.device | None = None, frames: int = 1
    ) -> TokenLayout:
        """No cell refined; `rows` x `columns` coarse cells."""
        refined = torch.zeros(batch, rows, columns, dtype=torch.bool, device=device)
        return cls(refined, patch, frames=frames, counted=0)

    @classmethod
    def fine(
        cls, batch: int, rows: int, columns: int, patch: int, device: torch.device | None = None, frames: int = 1
    ) -> TokenLayout:
        """Every cell refined; `rows` x `columns` coarse cells."""
        refined = torch.ones(batch, rows, columns, dtype=torch.bool, device=device)
        return cls(refined, patch, frames=frames, counted=rows * columns)

    @cached_property
    def batch(self) -> int:
        return self.refined.shape[0]

    @cached_property
    def cells(self) -> tuple[int, int]:
        """(Y, X): coarse cells along the height and the width."""
        return self.refined.shape[1], self.refined.shape[2]

    @property
    def fine_grid(self) -> tuple[int, int]:
        return 2 * self.cells[0], 2 * self.cells[1]

    @cached_property
    def made(self) -> dict[Hashable, tuple[Tensor, ...]]:
        """Tensors that depend on the layout alone, by whoever makes them once for it."""
        return {}

    @cached_property
    def coarse_index(self) -> Tensor:
        """(B, number of coarse tokens): raster indices of the unrefined cells."""
        return _places(~self.refined, self.coarse_tokens)

    @cached_property
    def fine_index(self) -> Tensor:
        """(B, number of fine tokens): raster indices, on the fine grid, of the refined cells' tokens."""
        return _places(self.fine_tokens, 4 * self.count)

    @cached_property
    def fine_tokens(self) -> Tensor:
        """(B, 2Y, 2X) bool on the fine token grid: True where the token is fine."""
        return replicate(self.refined)

    @cached_property
    def fine_pixels(self) -> Tensor:
        """(B, 1, H, W) bool on the latent grid: True where the canvas holds fine tokens."""
        mask = self.fine_tokens.repeat_interleave(self.patch, -1).repeat_interleave(self.patch, -2)
        return mask[:, None]

    @cached_property
    def coarse_tokens(self) -> int:
        """Number of coarse tokens of each sample."""
        return self.cells[0] * self.cells[1] - self.count

    @cached_property
    def tokens(self) -> int:
        """Number of tokens of each sample."""
        return self.coarse_tokens + 4 * self.count

    @cached_property
    def shared(self) -> bool:
        """True if all samples have the same layout; where only regions can tell, this waits for the device."""
        if self.batch == 1 or self.count == 0 or self.all_fine:
            return True
        return bool((self.refined == self.refined[:1]).all())

    @property
    def all_fine(self) -> bool:
        return self.coarse_tokens == 0

    def repeat(self, batch: int) -> TokenLayout:
        """The layout of a call whose batch is a whole multiple of ours, as classifier-free guidance stacks it."""
        if batch == self.batch:
            return self
        if batch % self.batch:
            raise ValueError(f"a call of batch {batch} does not hold whole copies of a layout of batch {self.batch}")
        return replace(self, refined=self.refined.repeat(batch // self.batch, 1, 1), counted=self.count)

    def pick(self, rows: Tensor) -> TokenLayout:
        """The layout of some samples, (k,) int64, alone."""
        return replace(self, refined=self.refined[rows], counted=self.count)

    def positions(self, anchor: float = 0.5) -> Tensor:
        """(B, n, 2) float32 (row, column) in fine-token units; a coarse token sits `anchor` into its cell."""
        columns = self.cells[1]
        coarse = torch.stack([self.coarse_index // columns, self.coarse_index % columns], -1).float() * 2 + anchor
        fine = torch.stack([self.fine_index // (2 * columns), self.fine_index % (2 * columns)], -1).float()
        return torch.cat([coarse, fine], 1)

    def token_frames(self) -> Tensor:
        """(B, n) int64: the frame in which each token lies."""
        (rows, columns), frames = self.cells, self.frames
        coarse = self.coarse_index // columns // (rows // frames)
        return torch.cat([coarse, self.fine_index // (2 * columns) // (2 * rows // frames)], 1)

    def reduce(self, image: Tensor) -> Tensor:
        """Canvas (B, C, H, W) -> its tokens (B, n, C*p*p); coarse tokens are block means."""
        self._check(image)
        parts = []
        if self.coarse_tokens:
            parts.append(_gather(patchify(pool(image), self.patch), self.coarse_index))
        if self.count:
            parts.append(_gather(patchify(image, self.patch), self.fine_index))
        return torch.cat(parts, 1)

    def expand(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, C*p*p) -> canvas (B, C, H, W), coarse tokens replicated; `reduce(expand(t)) == t` exactly."""
        if tokens.shape[:2] != (self.batch, self.tokens):
            raise ValueError(
                f"expected tokens ({self.batch}, {self.tokens}, d) of this layout, got {tuple(tokens.shape)}"
            )
        rows, columns = self.cells
        count = self.coarse_tokens
        coarse = _scatter(tokens[:, :count], self.coarse_index, rows * columns)
        low = replicate(unpatchify(coarse, rows, columns, self.patch))
        if not self.count:
            return low
        fine = _scatter(tokens[:, count:], self.fine_index, 4 * rows * columns)
        return torch.where(self.fine_pixels, unpatchify(fine, 2 * rows, 2 * columns, self.patch), low)

    def project(self, image: Tensor) -> Tensor:
        """The nearest canvas of this layout: block means where the tokens are coarse, `image` where they are fine."""
        self._check(image)
        return image if self.all_fine else torch.where(self.fine_pixels, image, coarsen(image))

    def _check(self, image: Tensor) -> None:
        rows, columns = self.fine_grid
        expected = (self.batch, rows * self.patch, columns * self.patch)
        if (image.shape[0], *image.shape[2:]) != expected:
            raise ValueError(f"expected an image (B, C, H, W) with (B, H, W) = {expected}, got {tuple(image.shape)}")
