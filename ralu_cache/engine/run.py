"""Run: the stages, canvas and caches of one pipeline call, made when the timesteps are set and closed at its end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ralu_cache.adapters.protocols import Setting
from ralu_cache.engine.autoencoder import Autoencoder
from ralu_cache.engine.branchbook import BranchBook
from ralu_cache.engine.branches import Branch
from ralu_cache.engine.canvas import Canvas, noise_on
from ralu_cache.engine.choosing import Seen, chosen_layout, first_layout
from ralu_cache.engine.conditions import Conditions
from ralu_cache.engine.course import Course
from ralu_cache.engine.deciding import Seen as Watched
from ralu_cache.engine.geometry import Geometry
from ralu_cache.engine.identity import agreements, survivors
from ralu_cache.engine.levels import StockSchedule
from ralu_cache.engine.predictions import Prediction
from ralu_cache.engine.shares import Rows, Shares
from ralu_cache.engine.tally import BranchNotes, Tally
from ralu_cache.history.ledger import Samples
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.guidance import Guidance
from ralu_cache.plane.spatial import SpatialMethod, Stage
from ralu_cache.plane.transition import make_lift, refined_noise, renoise_paper, renoise_rewind, seeded_noise
from ralu_cache.report.report import Report
from ralu_cache.temporal.base import Counting
from ralu_cache.temporal.policy import Policy, Situation

Signals = tuple[Callable[[], Tensor], Callable[[], Tensor]]


class Run(Course):
    """Stages, canvas and layout of one pipeline call; only the scheduler and the root hooks call it.

    With a spatial method the canvas is kept in float32; the model sees it in its own dtype. A latent that the pipeline
    or a callback changed between two steps replaces it, projected on the current layout. Without one the run has a
    single stage with the stock levels, and the stock scheduler does the arithmetic. `on_layout` is called at each
    change of layout. stock: the schedule that the caller asked for; watched: a callback of the caller's sees tensors.
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
    ) -> None:
        super().__init__(stages, stock, guidance, prediction)
        self.method = method
        self.geometry = geometry
        self.autoencoder = autoencoder
        self.report = report
        self.policy = policy
        self.watched = watched
        self.tally = Tally(report)
        self._unguided: set[int] = set()  # samples whose branches agreed
        self._paired = False  # some call was one of a pair
        self.believed_steps: int | None = None  # by the pipeline, where it does not count the levels it is given
        self._on_layout = on_layout
        self._situations: list[Situation] = []  # of all steps, made at the first
        self.branches = BranchBook(policy, watched, geometry.fill)
        self._conditions = Conditions()
        self.shares = Shares()
        self.grid: tuple[int, int] | None = None
        self.frames = 1
        self.layout: TokenLayout | None = None
        self.canvas = Canvas()
        self.text_attention: Tensor | None = None
        self._settled = False  # the pipeline's own batch is known
        self._numbers: tuple[int, ...] = ()  # of the pipeline's samples, as they were at the first step
        self._call_batch = 0

    def close(self) -> None:
        """Hold nothing any more, whoever still holds the run (a traceback, say)."""
        for held in (self.branches, self.shares, self.canvas, self._situations, self._conditions):
            held.clear()
        if self.prediction is not None:
            self.prediction.close()
        self.layout = self.text_attention = None
        self._on_layout = lambda: None
        self.autoencoder = Autoencoder()

    # ---- where the run stands

    @property
    def calls(self) -> int:
        """Calls of the denoiser in this step, that ran."""
        return self.tally.calls

    @property
    def asked(self) -> bool:
        """True once the pipeline has called the denoiser in this step, whether it ran or was answered."""
        return self.tally.asked > 0

    @property
    def lays_out(self) -> bool:
        """True if the pipeline is not shown the stock levels."""
        return self.method is not None or len(self.shown) < self.steps

    @cached_property
    def setting(self) -> Setting:
        """What adapters are told when they check a call; made anew where the run begins elsewhere."""
        caches = None if self.policy is None else self.policy.caches
        return Setting(self.method is not None, caches, len(self.places), self.believed_steps, self.leaves_out)

    @property
    def paired(self) -> bool:
        """True once a call was one of a pair, with and without the prompt."""
        return self._paired

    @property
    def wants_text_attention(self) -> bool:
        """True while the denoiser's first call of the step from which the next regions are chosen is under way."""
        if self.method is None or "text_attention" not in self.method.scorer.needs:
            return False
        if self.tally.calls != 1 or not self.ends_stage:
            return False
        return self.stages[self.places[self.index][0] + 1].kind == "mixed"

    def enter_at(self, entry: int) -> None:
        """See `Course.enter_at`."""
        super().enter_at(entry)
        vars(self).pop("setting", None)
        self.report.baseline_steps = self.stock.steps

    def start_at(self, index: int) -> None:
        """See `Course.start_at`."""
        super().start_at(index)
        vars(self).pop("setting", None)
        self.report.baseline_steps = self.stock.steps

    # ---- the denoiser's side

    def begin(self, grid: tuple[int, int], batch: int, image: Callable[[], Tensor], frames: int = 1) -> None:
        """First sight of the latent image (B, C, H, W): fixes the grid, the first layout and the coarse noise.

        The first call of a run may be a stack of copies of the pipeline's batch; `settle` tells them from it. Later
        calls tell when the batch shrinks, and else `image` is not asked for. frames: of a video, that stand one below
        the other in H. Raises ValueError for a grid that cells do not tile, latents given for a start in mid-schedule,
        or samples that cannot be told.
        """
        if self.layout is not None:
            if batch != self._call_batch:
                self._resize(image())
            return
        latents = image()
        self.frames, self._call_batch = frames, latents.shape[0]
        self._numbers = tuple(range(latents.shape[0]))
        self.tally.start(latents.device)
        layout = self._open(grid, latents.shape[0], latents.device)
        if self.method is None:
            return
        if self._entered:
            if self.stage.kind != "fine":
                raise ValueError(
                    "latents= together with a start in mid-schedule (strength < 1) is not supported: the noise in them "
                    "is unknown, so they cannot be reduced to coarse tokens; pass image= without latents="
                )
            self.layout = TokenLayout.fine(
                latents.shape[0], grid[0] // 2, grid[1] // 2, self.geometry.patch, latents.device, frames
            )
            return
        self.canvas.begin(latents, layout, self.method)

    def settle(self, batch: int) -> None:
        """Keep the pipeline's own `batch` of what a first, stacked call has opened; the copies follow it in order."""
        if self._settled:
            return
        assert self.layout is not None
        if batch > self.layout.batch:
            raise RuntimeError(
                f"the scheduler steps with {batch} samples, the denoiser was called on {self.layout.batch}: this "
                "pipeline goes on in a way of its own, which is not supported; disable it"
            )
        self._settled = True
        self.report.batch = batch
        if self._numbers and len(self._numbers) != batch:
            self.branches.settle(batch)
        self._conditions.settle(batch)
        self._numbers = tuple(range(batch))
        if batch != self.layout.batch:
            self.shares.settle(batch)
            self._keep_samples(range(batch), of_calls=False)

    def knows(self, batch: int) -> bool:
        """True if a call on so many samples needs no `begin`."""
        return self.layout is not None and batch == self._call_batch

    def share(self, batch: int) -> tuple[Rows, TokenLayout]:
        """The rows of a call of the pipeline's on so many samples, and the layout of its tokens."""
        assert self.layout is not None
        return self.shares.of(batch, self.layout)

    def layout_for(self, rows: Rows) -> TokenLayout:
        """The current layout for a call on these of its samples; the same object all through a stage."""
        assert self.layout is not None
        return self.shares.layout_of(rows, self.layout)

    def guided(self, batch: int) -> list[bool]:
        """Of each of the pipeline's samples, whether this step is guided; noted for the report."""
        now = self._guides(self.index)
        found = [now and number not in self._unguided for number in self._numbers[:batch]]
        self._paired, self.tally.guided = True, any(found) or bool(self.tally.guided)
        skipped = () if self.prediction is None else self.prediction.skipped
        return [wanted and sample not in skipped for sample, wanted in enumerate(found)]

    def number(self, sample: int) -> int:
        """Which of the pipeline's samples, as they were at the first step, is now at this place in its batch."""
        return self._numbers[sample]

    def agreed(self, samples: Sequence[int]) -> None:
        """These samples' predictions agree: they are guided no more."""
        self._unguided.update(map(self.number, samples))

    def _resize(self, latents: Tensor) -> None:
        """Notice a batch from which samples have gone since the last step, by what the scheduler gave them then."""
        assert self.layout is not None
        batch, own, before = latents.shape[0], self.layout.batch, self._call_batch
        self._call_batch = batch
        if not self._settled:
            return
        latest = self.canvas.latest
        same = [] if latest is None else agreements(latents, self._image(latest))
        if batch % own == 0 and (not same or all(row[place % own] for place, row in enumerate(same))):
            return  # copies of all of it: guidance that began or ended
        kept = survivors(same, batch * own // max(before, 1))
        if kept is None:
            raise ValueError(
                f"a batch of {own} pictures became a call on {batch} in mid-run, and which of them these are cannot be "
                "told; drop samples of `latents` without changing the others"
            )
        self._numbers = tuple(self._numbers[n] for n in kept)
        self._keep_samples(kept)

    def _image(self, latents: Tensor) -> Tensor:
        assert self.grid is not None
        return self.geometry.to_image(latents, self.grid)

    def _keep_samples(self, kept: Sequence[int], of_calls: bool = True) -> None:
        """Go on with some of the samples alone. of_calls: layouts of calls are begun anew; branches follow by row."""
        assert self.layout is not None
        rows = Samples.of(kept, self.layout.refined.device).rows
        self.layout = self.layout.pick(rows)
        self.canvas.pick(rows, handed_out=of_calls)
        if self.prediction is not None:
            self.prediction.pick(kept, self.layout)
        if of_calls:
            self.shares = Shares()

    @property
    def extent(self) -> tuple[int, int]:
        """(rows, columns) of the grid that position ids count on: of fine tokens, or of coarse ones."""
        assert self.layout is not None
        fine = self.method is not None and self.method.positions == "fine"
        return self.layout.fine_grid if fine else self.layout.cells

    def branch(
        self,
        denoiser: object,
        rows: Rows,
        layout: TokenLayout,
        tensors: Mapping[str, Tensor],
        settings: tuple[Any, ...],
    ) -> Branch:
        """The temporal state of the samples that a call computes: see `BranchBook.find`."""
        numbers = tuple([self._numbers[row] for row in rows])
        return self.branches.find(denoiser, numbers, layout, tensors, settings)

    def situation(self) -> Situation:
        """Where the run stands, as a temporal policy needs to know it; the same object for all calls of a step."""
        if not self._situations:
            self._situations = self.situations()
            policy: object = self.policy
            if isinstance(policy, Counting):
                policy.foresee(self._situations)
        return self._situations[self.index - self._start]

    # ---- predictions that stand in for calls

    def condition(
        self, rows: Sequence[int], tensors: Mapping[str, Tensor], settings: tuple[Any, ...]
    ) -> tuple[int, int] | None:
        """What a call on all of its rows is conditioned on, as a number, and how many copies of the batch it has.

        None where no predictions are kept. rows, tensors, settings: as `branch` takes them.
        """
        if self.prediction is None or self.layout is None:
            return None
        samples = tuple([self._numbers[row] for row in rows])
        number = self._conditions.recognise(samples, tensors, settings, self.watched)
        return number, len(rows) // self.layout.batch

    def called(self, condition: tuple[int, int] | None, rows: Sequence[int]) -> None:
        """A call was made under a condition, for these rows."""
        if condition is not None:
            self._conditions.called(*condition, rows)

    def decide(self, condition: tuple[int, int] | None, signals: Callable[[], Signals]) -> frozenset[int]:
        """The samples whose prediction is forecast in this step, by who decides in the run; once a step.

        condition: of the step's first call. signals: gives that call's, "modulated" and "canvas", as functions.
        """
        if self.prediction is None or self.prediction.chooser is None or self.layout is None or condition is None:
            return frozenset()
        layout = self.layout

        def look() -> Watched:
            return Watched(self.situation(), layout, *signals())

        step = self.index - self._start
        begins = self.index == self._start or self.places[self.index][0] != self.places[self.index - 1][0]
        turns = self.index > self._start and self._guides(self.index) != self._guides(self.index - 1)
        forced = turns or self.wants_text_attention or self.prediction.forces(step, self.steps, begins)
        forced = forced or self._conditions.unlike(*condition)
        return self.prediction.decide(self.index, forced, layout.batch, look)

    def compute_all(self) -> None:
        """Whatever was decided for this step, every sample is computed."""
        if self.prediction is not None:
            self.prediction.compute_all()

    def forecast(self) -> Tensor:
        """The velocities (B, C, H, W) that stand in for predictions which are not computed, where the canvas is now."""
        assert self.prediction is not None and self.layout is not None and self.canvas.value is not None
        return self.prediction.velocity(self.canvas.value, self.sigma, self.layout)

    # ---- the scheduler's side

    def add_noise(self, image: Tensor, noise: Tensor) -> Tensor:
        """Forward process on the current layout: (1 - sigma) image + sigma noise, both of the layout's tokens.

        `image` and `noise` are (B, C, H, W); before the first step this fixes grid, layout and the seed's noise.
        """
        if self.layout is None:
            patch = self.geometry.patch
            grid = (image.shape[2] // patch, image.shape[3] // patch)
            self._open(grid, image.shape[0], image.device)
            self._call_batch, self._settled = image.shape[0], True
            self._numbers = tuple(range(image.shape[0]))
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
            kinds = self._conditions.kinds(len(x))
            later = self.stage.sigmas[self.places[self.index][1] + 1 : -1]
            self.prediction.learn(x, v, self.index, self.sigma, later, self.layout)
            x, v = self.prediction.take(x, v, self.sigma, self.layout, kinds, ours)
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
        self.tally.close(self, layout.tokens if self.geometry.known else 0, notes, sample.device)
        self.branches.close_step()
        self._conditions.close_step()
        self.canvas.latest = sample
        self.index += 1
        self.report.completed = self.finished

    # ---- inner workings

    def _open(self, grid: tuple[int, int], batch: int, device: torch.device) -> TokenLayout:
        self.grid = grid
        self.report.size, self.report.batch = grid if self.geometry.known else (0, 0), batch
        self.layout = first_layout(self.method, self.stage.kind, grid, batch, self.geometry, self.frames, device)
        return self.layout

    def _transition(self, x: Tensor, v: Tensor, x0: Tensor) -> Tensor:
        noise = self.canvas.noise
        assert self.layout is not None and noise is not None and self.method is not None
        upcoming = self.stages[self.places[self.index][0] + 1]
        before = self.layout
        self.layout = self._choose(x0, v, upcoming=upcoming)
        self.shares.renew(self.layout)
        self._carry_over()
        self._on_layout()
        split = self.layout.fine_pixels & ~before.fine_pixels
        sigma, sigma_next = self.sigma_next, upcoming.sigmas[0]
        self.canvas.estimates = []
        fresh = self.method.noise == "paper"
        if fresh:
            white = seeded_noise(noise, f"transition at step {self.index}")
            moved = renoise_paper(x, sigma, sigma_next, split, before.fine_pixels, white)
        else:
            lift = make_lift(self.method.lift, self.autoencoder.decode, self.autoencoder.encode, self.frames)
            moved = renoise_rewind(x, v, sigma, sigma_next, split, noise, lift)
        if self.prediction is not None:
            scale = (1 - sigma_next) / (1 - sigma)

            def renoised(estimate: Tensor) -> Tensor:
                """What becomes of an estimate of the canvas' noise."""
                if fresh:
                    return (scale * sigma * estimate + (moved - scale * x)) / sigma_next
                return torch.where(split, refined_noise(estimate, noise), estimate)

            changed = torch.full((self.layout.batch, self.layout.tokens), fresh, device=self.layout.refined.device)
            self.prediction.transfer(self.layout, renoised, changed)
        return moved

    def _carry_over(self) -> None:
        """Move what the branches have cached to the new layout; the paper's noise is fresh for every token."""
        assert self.method is not None

        def layout_of(samples: tuple[int, ...]) -> TokenLayout:
            return self.layout_for(tuple(self._numbers.index(number) for number in samples))

        self.branches.transfer(layout_of, fresh=self.method.noise == "paper")

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
