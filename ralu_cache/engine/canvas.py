"""The canvas of a run: as it is, in float32, and as it was handed out to the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ralu_cache.engine.identity import Snapshot
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.spatial import SpatialMethod
from ralu_cache.plane.transition import coarse_noise

HISTORY = 3  # clean estimates kept for the scorers that look at the last coarse steps


class Canvas:
    """What is known of the latents. All are images (B, C, H, W), but what was handed out has the pipeline's own form.

    value: the canvas. noise: the seed's, at full resolution. estimates: of x0, by the last steps of the stage. latest:
    what the scheduler gave last.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.noise: Tensor | None = None
        self.latest: Tensor | None = None
        self.estimates: list[Tensor] = []
        self._emitted: Snapshot | None = None
        self._watched = False

    def clear(self) -> None:
        self.value = self.noise = self.latest = self._emitted = None
        self.estimates.clear()

    def begin(self, latents: Tensor, layout: TokenLayout, method: SpatialMethod) -> None:
        """The pipeline's first latents are noise; coarse tokens begin with theirs."""
        self.noise = latents.float()
        self.value = noise_on(layout, self.noise, method)

    def model_input(self, latents: Tensor, rows: Sequence[int]) -> Tensor:
        """What the model is to see, (b, C, H, W): coarse noise at the first step, else the given latents."""
        if self.value is None or self._emitted is not None:
            return latents
        canvas = self.value.to(latents.dtype)
        return canvas if len(rows) == len(canvas) else torch.stack([canvas[row] for row in rows])

    def now(
        self, sample: Tensor, layout: TokenLayout | None, image: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, bool]:
        """The canvas that a step begins with, and whether it is the one that the step before led to.

        A sample that was replaced is projected on the layout, if there is one to hold to.
        """
        if self.value is not None and (self._emitted is None or _is_ours(sample, self._emitted, self._watched)):
            return self.value, True
        given = image(sample).float()
        return given if layout is None else layout.project(given), False

    def estimated(self, x0: Tensor) -> None:
        self.estimates = [*self.estimates, x0][-HISTORY:]

    def emit(self, value: Tensor, out: Tensor, watched: bool) -> None:
        """The canvas is `value` now, and is handed out as `out`; watched: to a callback of the caller's too."""
        self.value, self._emitted, self._watched = value, Snapshot.of(out, watched), watched

    def pick(self, rows: Tensor, handed_out: bool) -> None:
        """Go on with the samples `rows` (k,) alone; handed_out: so does what the pipeline holds."""
        self.noise = None if self.noise is None else self.noise[rows]
        self.value = None if self.value is None else self.value[rows]
        self.estimates = [known[rows] for known in self.estimates]
        if handed_out:
            self._emitted = None if self._emitted is None else _follow(self._emitted, rows)
            self.latest = None if self.latest is None else self.latest[rows]


def noise_on(layout: TokenLayout, noise: Tensor, method: SpatialMethod) -> Tensor:
    """The noise (B, C, H, W) with which the layout's tokens begin."""
    if layout.all_fine:
        return noise
    return torch.where(layout.fine_pixels, noise, coarse_noise(noise, method.start))


def _is_ours(sample: Tensor, emitted: Snapshot, watched: bool) -> bool:
    """True if the sample is what was handed out: the very tensor, or what followed it into a smaller batch, or a copy
    that a callback gave back."""
    if sample is emitted.tensor:
        return emitted.untouched
    if not (watched or emitted.version is None) or sample.shape != emitted.tensor.shape:
        return False
    return emitted.untouched and torch.equal(sample, emitted.tensor)


def _follow(emitted: Snapshot, rows: Tensor) -> Snapshot | None:
    """What was handed out, of some samples; the pipeline's own cut of it is another tensor of the same values."""
    return Snapshot(emitted.tensor[rows], None, emitted.tensor[rows]) if emitted.untouched else None
