"""The passage of a run: its canvas, step by step along the course, from the first noise to the picture.

What the scheduler asks of a run; what the denoiser does is `ralu_cache.engine.run`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ralu_cache.engine.autoencoder import Autoencoder
from ralu_cache.engine.batch import Batch
from ralu_cache.engine.branchbook import BranchBook
from ralu_cache.engine.canvas import Canvas, noise_on
from ralu_cache.engine.choosing import Seen, chosen_layout, first_layout
from ralu_cache.engine.course import Course
from ralu_cache.engine.crossing import Crossing
from ralu_cache.engine.geometry import Geometry
from ralu_cache.engine.levels import StockSchedule
from ralu_cache.engine.predictions import Prediction
from ralu_cache.engine.shares import Shares
from ralu_cache.engine.tally import BranchNotes, Tally
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.guidance import Guidance
from ralu_cache.plane.spatial import SpatialMethod, Stage
from ralu_cache.report.report import Report
from ralu_cache.temporal.policy import Policy


class Passage(Course):
    """The canvas of one run, the layout of its tokens, and what is kept of the calls made on it.

    With a spatial method the canvas is kept in float32; the model sees it in its own dtype. A latent that the pipeline
    or a callback changed between two steps replaces it, projected on the current layout. Without one the run has a
    single stage with the stock levels, and the stock scheduler does the arithmetic. `on_layout` is called at each
    change of layout; watched: a callback of the caller's sees tensors. stock_steps: every step is made as the stock
    scheduler makes it; whole_calls: and every call as the pipeline makes it, on all tokens, for all of its samples.
    """

    def __init__(
        self,
        method: SpatialMethod | None,
        stages: tuple[Stage, ...],
        geometry: Geometry,
        autoencoder: Autoencoder,
        report: Report,
        policy: Policy | None = None,
        on_layout: Callable[[], None] = lambda: None,
        stock: StockSchedule | None = None,
        watched: bool = False,
        guidance: Guidance | None = None,
        prediction: Prediction | None = None,
        low: tuple[object, Policy | None] | None = None,
        boundary: float | None = None,
    ) -> None:
        super().__init__(stages, stock, guidance, prediction, boundary)
        self._low = low
        self.stock_steps = method is None and prediction is None
        self.whole_calls = self.stock_steps and guidance is None
        self.method, self.policy, self.watched = method, policy, watched
        self.geometry, self.autoencoder, self.report = geometry, autoencoder, report
        self.tally = Tally(report)
        self.branches = BranchBook(watched, geometry.fill)
        self.batch = Batch()
        self.shares = Shares()
        self.canvas = Canvas()
        self.grid: tuple[int, int] | None = None
        self.frames = 1
        self.layout: TokenLayout | None = None
        self.text_attention: Tensor | None = None
        self._on_layout = on_layout

    def close(self) -> None:
        """Hold nothing any more, whoever still holds the run (a traceback, say)."""
        for held in (self.branches, self.shares, self.canvas):
            held.clear()
        if self.prediction is not None:
            self.prediction.close()
        self.layout = self.text_attention = None
        self._on_layout, self._low = lambda: None, None
        self.autoencoder = Autoencoder()

    def forget(self) -> None:
        """See `Prediction.forget`."""
        if self.prediction is not None:
            self.prediction.forget()

    @property
    def lays_out(self) -> bool:
        """True if the pipeline is not shown the stock levels."""
        return self.method is not None or len(self.shown) < self.steps

    def add_noise(self, image: Tensor, noise: Tensor) -> Tensor:
        """Forward process on the current layout: (1 - sigma) image + sigma noise, both of the layout's tokens.

        `image` and `noise` are (B, C, H, W); before the first step this fixes grid, layout and the seed's noise.
        """
        if self.layout is None:
            patch = self.geometry.patch
            grid = (image.shape[2] // patch, image.shape[3] // patch)
            self._open(grid, image.shape[0], image.device)
            self.batch.open(image.shape[0], settled=True)
            if self.stage.kind != "coarse":
                self.layout = self._choose(image.float(), -image.float(), started=False)
            self.canvas.noise = noise.float()
        assert self.layout is not None and self.method is not None
        clean = self.layout.project(image.float())
        return (1 - self.sigma) * clean + self.sigma * noise_on(self.layout, noise.float(), self.method)

    def advance(
        self, velocity: Tensor, sample: Tensor, stock: Callable[[], Tensor], gives: torch.dtype | None = None
    ) -> Tensor:
        """One step of the canvas and those behind it that are not computed; same form as `velocity`.

        A stage's end is followed by the transition. stock: makes the stock step, which a computed one is where there
        are neither stages nor a solver. gives: the dtype that it gives, that of `velocity` if None.
        """
        assert self.layout is not None
        x, ours = self.canvas.now(sample, None if self.method is None else self.layout, self._image)
        v = self._prediction(velocity)
        if self.prediction is not None:
            if self.changes:
                self.forget()
            later = self.stage.sigmas[self.places[self.index][1] + 1 : -1]
            self.prediction.learn(x, v, self.index, self.sigma, later, self.layout)
            x, v = self.prediction.take(x, v, self.sigma, self.layout, ours)
        last = self.shown[self.shown_index + 1] if self.shown_index + 1 < len(self.shown) else len(self.places)
        if self.method is None and last == self.index + 1 and (self.prediction is None or self.prediction.is_plain):
            out = stock()
            self.canvas.emit(self._image(out).float(), out, self.watched)
            self.close_step(out)
            return out
        out = sample
        while True:
            step = self.index
            x, x0, v = self._go(x, v, last)
            self.canvas.estimated(x0)
            layout, branches = self.layout, self.branches.notes(self.tally.costs)
            if self.ends_stage:
                x = self._transition(x, v, x0)
            self.canvas.value = x
            if step + 1 == last:
                out = self.geometry.from_image(x, sample).to(gives or velocity.dtype)
                self.canvas.emit(x, out, self.watched)
            self.close_step(out, layout, branches)
            if self.index == last:
                return out
            assert self.prediction is not None
            v = self.prediction.velocity(x, self.sigma, self.layout)

    def _go(self, x: Tensor, v: Tensor, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """From the canvas of this step to that of the next: (canvas, clean estimate, velocity at a stage's end).

        last: the place of the next step that is computed.
        """
        assert self.layout is not None
        prediction = self.prediction
        if prediction is None or prediction.solver is None:
            x0 = x - self.sigma * v
            return x + (self.sigma_next - self.sigma) * v, x0, v
        left = len(self.shown) - bisect_left(self.shown, last) + 1
        x = prediction.leap(x, self.sigma_next, left, self.layout)
        if self.sigma_next == 0:
            return x, x, v
        x0 = prediction.clean(self.sigma_next, self.layout)
        return x, x0, (x - x0) / self.sigma_next

    def _prediction(self, velocity: Tensor) -> Tensor:
        """What the model gave, as an image (B, C, H, W) in float32."""
        assert self.layout is not None
        if self.method is None:
            return self._image(velocity).float()
        return self.geometry.prediction_image(velocity, self.layout).float()

    def close_step(
        self, sample: Tensor, layout: TokenLayout | None = None, branches: BranchNotes | None = None
    ) -> None:
        """Note the step to `sample`, made on `layout` with `branches` (by default the current ones); go to the next."""
        layout = layout or self.layout
        assert layout is not None
        notes = self.branches.notes(self.tally.costs) if branches is None else branches
        self.tally.close(self, layout.tokens if self.geometry.known else 0, notes)
        self.branches.close_step()
        if self.prediction is not None:
            self.prediction.conditions.close_step()
        self.canvas.latest = sample
        self.index += 1
        self.report.completed = self.finished

    # ---- inner workings

    def _open(self, grid: tuple[int, int], batch: int, device: torch.device) -> TokenLayout:
        self.grid = grid
        self.report.size, self.report.batch = grid if self.geometry.known else (0, 0), batch
        self.layout = first_layout(self.method, self.stage.kind, grid, batch, self.geometry, self.frames, device)
        return self.layout

    def _image(self, latents: Tensor) -> Tensor:
        assert self.grid is not None
        return self.geometry.to_image(latents, self.grid)

    def _transition(self, x: Tensor, v: Tensor, x0: Tensor) -> Tensor:
        """To the stage that comes: its layout, what is kept moved there, and the canvas. v, x0: of the step made."""
        noise, before = self.canvas.noise, self.layout
        assert before is not None and noise is not None and self.method is not None
        upcoming = self.stages[self.places[self.index][0] + 1]
        self.layout = self._choose(x0, v, upcoming=upcoming)
        self.shares.renew(self.layout)
        crossing = Crossing(self.method, before, self.layout, self.sigma_next, upcoming.sigmas[0], noise)
        self.branches.transfer(self._layout_of, fresh=crossing.fresh)
        self._on_layout()
        self.canvas.estimates = []
        moved = crossing.canvas(x, v, self.autoencoder, self.index)
        if self.prediction is not None:
            self.prediction.transfer(self.layout, partial(crossing.estimate, x=x, moved=moved), crossing.changed)
        return moved

    def _layout_of(self, samples: tuple[int, ...]) -> TokenLayout:
        """The layout of a call on these samples, by their numbers."""
        assert self.layout is not None
        places = tuple(self.batch.numbers.index(number) for number in samples)
        return self.shares.layout_of(places, self.layout)

    def _choose(self, x0: Tensor, velocity: Tensor, upcoming: Stage | None = None, started: bool = True) -> TokenLayout:
        """The layout of the upcoming (or, before the first step, the current) stage, regions chosen per sample."""
        assert self.layout is not None and self.method is not None
        seen = Seen(x0, velocity, self.canvas.estimates, self.text_attention, self.autoencoder.decode, started)
        layout, regions, notice = chosen_layout(self.method, self.layout, upcoming or self.stage, seen)
        if notice is not None:
            self.report.notices.append(notice)
        if regions is not None:
            self.report.regions.append(regions.numpy())
            self.text_attention = None
        return layout
