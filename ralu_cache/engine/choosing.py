"""Which cells a stage refines: the first layout, and those that transitions go to, chosen from what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralu_cache.engine.geometry import Geometry
from ralu_cache.engine.ranked import common
from ralu_cache.plane.canvas import TokenLayout, split_frames
from ralu_cache.plane.regions import Evidence, Scorer, get_scorer, select_top, share_over_time
from ralu_cache.plane.spatial import SpatialMethod, Stage
from ralu_cache.plane.transition import Codec


@dataclass(frozen=True, eq=False)
class Seen:
    """What the choice may look at: x0 and velocity (B, C, H, W) of the last step, and earlier estimates of x0.

    attention: (B, n), the share of each token's attention that falls on the text; None where nobody asked for it.
    decode: latents to images, or None. started: False before the first step, when no history is there.
    """

    x0: Tensor
    velocity: Tensor
    history: Sequence[Tensor] = ()
    attention: Tensor | None = None
    decode: Codec | None = None
    started: bool = True


def first_layout(
    method: SpatialMethod | None,
    kind: str,
    grid: tuple[int, int],
    batch: int,
    geometry: Geometry,
    frames: int,
    device: torch.device,
) -> TokenLayout:
    """The layout with which a run begins in a stage of a kind, on a grid of (rows, columns) of all frames.

    Raises ValueError for a grid that cells do not tile, or a method for videos on single images.
    """
    rows, columns = grid
    if method is None:  # one grid of tokens, whatever its size; nothing is refined or reduced
        return TokenLayout.coarse(batch, rows, columns, geometry.patch, device, frames)
    if frames == 1 and method.regions_over_time != "frame":
        raise ValueError(
            f"regions_over_time={method.regions_over_time!r} is for videos, and this call makes single images; "
            "leave it out"
        )
    rows //= frames
    if rows % 2 or columns % 2:
        pixels = geometry.pixels
        nearest = (rows + rows % 2) * pixels, (columns + columns % 2) * pixels
        raise ValueError(
            f"height and width must be multiples of {2 * pixels} for spatial stages, got "
            f"{rows * pixels}x{columns * pixels}; nearest: {nearest[0]}x{nearest[1]}"
        )
    make = TokenLayout.fine if kind == "fine" else TokenLayout.coarse
    return make(batch, frames * rows // 2, columns // 2, geometry.patch, device, frames)


def chosen_layout(
    method: SpatialMethod, layout: TokenLayout, stage: Stage, seen: Seen
) -> tuple[TokenLayout, Tensor | None, str | None]:
    """The layout of `stage`, after `layout`; its regions (B, Y, X) bool if there are any, and a notice to be told."""
    batch, cells, frames = layout.batch, layout.cells, layout.frames
    if stage.kind == "fine":
        return TokenLayout.fine(batch, *cells, layout.patch, seen.x0.device, frames), None, None
    scorer, notice = _scorer(method, seen.started)
    scores = common(scorer.score(_evidence(layout, seen)))
    if method.regions_over_time == "shared":
        scores = share_over_time(scores, frames)
    already = layout.refined.reshape(scores.shape)
    mask = select_top(scores, stage.ratio, already).view(batch, *cells)
    regions = mask.cpu()
    return replace(layout, refined=mask, counted=int(regions[0].sum())), regions, notice


def _scorer(method: SpatialMethod, started: bool) -> tuple[Scorer, str | None]:
    scorer = method.scorer
    if started or not scorer.needs & {"history", "text_attention"}:
        return scorer, None
    return get_scorer("latent-gradient"), f"regions by latent-gradient: {scorer.name!r} needs steps before the start"


def _evidence(layout: TokenLayout, seen: Seen) -> Evidence:
    batch, frames = layout.batch, layout.frames
    attention = None if seen.attention is None else _per_cell(seen.attention[-batch:], layout)
    if attention is not None:
        attention = attention.reshape(batch * frames, -1, layout.cells[1])
    history = tuple(split_frames(known, frames) for known in seen.history) if seen.started else ()
    x0, velocity = split_frames(seen.x0, frames), split_frames(seen.velocity, frames)
    return Evidence(
        x0=x0, velocity=velocity, history=history or (x0,), patch=layout.patch, decode=seen.decode,
        text_attention=attention, frames=frames,
    )  # fmt: skip


def _per_cell(per_token: Tensor, layout: TokenLayout) -> Tensor:
    """(B, n) values of the layout's tokens -> (B, Y, X) means over the cells."""
    patch = layout.patch
    image = layout.expand(per_token[..., None].expand(-1, -1, patch * patch).contiguous())
    return torch.nn.functional.avg_pool2d(image, 2 * patch)[:, 0]
