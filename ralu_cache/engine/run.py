"""Run: the stages, canvas and caches of one pipeline call, made when the timesteps are set and closed at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ralu_cache.engine.autoencoder import Autoencoder
from ralu_cache.engine.branches import Branch
from ralu_cache.engine.identity import Identity, Snapshot, agreements, survivors
from ralu_cache.engine.levels import StockSchedule, entering
from ralu_cache.history.ledger import Samples
from ralu_cache.plane.canvas import TokenLayout, split_frames
from ralu_cache.plane.guidance import Guidance
from ralu_cache.plane.regions import Evidence, get_scorer, select_top, share_over_time
from ralu_cache.plane.spatial import ANCHORS, SpatialMethod, Stage
from ralu_cache.plane.transition import coarse_noise, make_lift, renoise_paper, renoise_rewind, seeded_noise
from ralu_cache.report.record import BranchRecord, Report, StepRecord
from ralu_cache.temporal.base import Counting, Policy, Situation

BranchNotes = Sequence[Callable[[], BranchRecord]]
HISTORY = 3  # clean estimates kept for the scorers that look at the last coarse steps


@dataclass(frozen=True)
class Geometry:
    """How the pipeline's latents map to images: the adapter's conversions and its sizes.

    `to_image(latents, grid)` gives (B, C, H, W) from what the pipeline holds, `from_image(image, like)` the inverse;
    `prediction_image(prediction, layout)` does so for the model's predictions, which may be arranged otherwise;
    `patch` is latent pixels per token side, `pixels` image pixels per token side.
    """

    to_image: Callable[[Tensor, tuple[int, int]], Tensor]
    from_image: Callable[[Tensor, Tensor], Tensor]
    prediction_image: Callable[[Tensor, TokenLayout], Tensor]
    patch: int
    pixels: int


def _event(device: torch.device | None) -> Any:
    """On a GPU, an event that its stream passes now; else None."""
    if device is None or device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _record(
    stages: Sequence[Stage], place: tuple[int, tuple[int, int], int], figures: tuple[Any, ...], notes: BranchNotes
) -> StepRecord:
    """The record of a step, from what was noted of it; made when somebody reads the report."""
    index, (stage, step), tokens = place
    calls, costs, seconds, samples, guided, spared = figures
    sigma, sigma_next = stages[stage].sigmas[step : step + 2]
    return StepRecord(
        index=index,
        stage=stage,
        sigma=sigma,
        sigma_next=sigma_next,
        tokens=tokens,
        calls=calls,
        flops=sum(flops for flops, _ in costs),
        seconds=seconds,
        branches=tuple(note() for note in notes),
        saved_flops=sum(saved for _, saved in costs),
        samples=samples,
        guided=guided,
        spared_flops=spared,
    )


class Run:
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
    ) -> None:
        self.method = method
        self.geometry = geometry
        self.autoencoder = autoencoder
        self.report = report
        self.policy = policy
        self.watched = watched
        self.guidance = guidance
        self._unguided: set[int] = set()  # samples whose branches agreed
        self._paired = False  # some call was one of a pair
        self.stock = stock or StockSchedule(stages[-1].sigmas)
        self.believed_steps: int | None = None  # by the pipeline, where it does not count the levels it is given
        self._on_layout = on_layout
        self._lay_out(stages)
        self._start = 0
        self._situations: list[Situation] = []  # of all steps, made at the first
        self._entered = False  # in mid-schedule
        self.index = 0
        self.calls = 0
        self._samples = 0
        self._costs: list[tuple[float, float]] = []
        self.controlled = False  # some ControlNet was called
        self._asked = self._asked_first = 0  # calls that the pipeline made in this step, and in the first
        self._guided: bool | None = None  # this step; None while it is not known, or there is nothing to guide
        self._spared = 0.0  # FLOPs that this step's guidance would have cost
        self._branches: list[Branch] = []  # of the step before
        self._used: list[Branch] = []  # of this step, in the order of the calls
        self.grid: tuple[int, int] | None = None
        self.frames = 1
        self.layout: TokenLayout | None = None
        self.noise: Tensor | None = None
        self.text_attention: Tensor | None = None
        self._settled = False  # the pipeline's own batch is known
        self._numbers: tuple[int, ...] = ()  # of the pipeline's samples, as they were at the first step
        self._call_batch = 0
        self._canvas: Tensor | None = None
        self._emitted: Snapshot | None = None
        self._latest: Tensor | None = None  # what the scheduler gave last
        self._history: list[Tensor] = []
        self.tables: dict[Any, Any] = {}
        self._layouts: dict[tuple[int, ...], TokenLayout] = {}  # by the samples, as numbers of `layout`'s
        self._shares: dict[int, tuple[tuple[int, ...], TokenLayout]] = {}  # by the batch of a call on copies of all
        self._clock = time.perf_counter()  # when the step began, by the host
        self._event: Any = None  # and by the GPU
        self._events: list[tuple[Any, Any]] = []  # before and after each step

    def close(self) -> None:
        """Hold nothing any more, whoever still holds the run (a traceback, say)."""
        for name in ("_branches", "_used", "_history", "_layouts", "_shares", "_situations", "tables", "_events"):
            getattr(self, name).clear()
        self.layout = self.noise = self.text_attention = self._canvas = self._emitted = self._latest = None
        self._on_layout = lambda: None
        self.autoencoder = Autoencoder()

    # ---- where the run stands

    @property
    def stage(self) -> Stage:
        return self.stages[self.places[self.index][0]]

    @property
    def sigma(self) -> float:
        s, i = self.places[self.index]
        return self.stages[s].sigmas[i]

    @property
    def sigma_next(self) -> float:
        """The level this step integrates to, before any transition."""
        s, i = self.places[self.index]
        return self.stages[s].sigmas[i + 1]

    @property
    def finished(self) -> bool:
        return self.index == len(self.places)

    @property
    def ends_stage(self) -> bool:
        """True if a transition follows this step."""
        s, i = self.places[self.index]
        return i + 1 == self.stages[s].steps and s + 1 < len(self.stages)

    @property
    def passed(self) -> int:
        """How many steps of the stock schedule are done, at the level that the last step came to."""
        if not self.index:
            return 0
        s, i = self.places[self.index - 1]
        return self.stock.passed(self.stages[s].sigmas[i + 1])

    @property
    def paired(self) -> bool:
        """True once a call was one of a pair, with and without the prompt."""
        return self._paired

    @property
    def wants_text_attention(self) -> bool:
        """True while the denoiser's first call of the step from which the next regions are chosen is under way."""
        if self.method is None or "text_attention" not in self.method.scorer.needs:
            return False
        if self.calls != 1 or not self.ends_stage:
            return False
        return self.stages[self.places[self.index][0] + 1].kind == "mixed"

    def levels(self) -> list[float]:
        """One a step, and the last 0: what the scheduler hands out."""
        return [*(level for stage in self.stages for level in stage.sigmas[:-1]), 0.0]

    # ---- where it begins

    def enter_at(self, entry: int) -> None:
        """Begin where the stock schedule is after so many steps (`strength`): at its level, whatever the plan's are."""
        self.stock = self.stock.entered(entry)
        self._entered = True
        self.report.baseline_steps = self.stock.steps
        self._lay_out(entering(self.stages, self.stock.sigmas[entry]))

    def start_at(self, index: int) -> None:
        """Begin at a later place of the stock schedule, which is the run's own: no stages are there."""
        self.index = self._start = index
        self._entered = True
        self.stock = self.stock.entered(index)
        self.report.baseline_steps = self.stock.steps

    def _lay_out(self, stages: tuple[Stage, ...]) -> None:
        self.stages = stages
        self.places = [(s, i) for s, stage in enumerate(stages) for i in range(stage.steps)]

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
        self._clock, self._event = time.perf_counter(), _event(latents.device)
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
        self.noise = latents.float()
        self._canvas = self._noise_on(layout)

    def settle(self, batch: int) -> None:
        """Keep the pipeline's own `batch` of what a first, stacked call has opened; the copies follow it in order."""
        if self._settled:
            return
        assert self.layout is not None
        self._settled = True
        self.report.batch = batch
        if self._numbers and len(self._numbers) != batch:
            for branch in self._used:
                branch.identity = branch.identity.with_samples([n % batch for n in branch.identity.samples])
        self._numbers = tuple(range(batch))
        if batch != self.layout.batch:
            self._layouts = {tuple(row % batch for row in rows): held for rows, held in self._layouts.items()}
            self._shares = {}
            self._keep_samples(range(batch), of_calls=False)

    def knows(self, batch: int) -> bool:
        """True if a call on so many samples needs no `begin`."""
        return self.layout is not None and batch == self._call_batch

    def share(self, batch: int) -> tuple[tuple[int, ...], TokenLayout]:
        """`rows` and their layout."""
        if batch not in self._shares:
            rows = self.rows(batch)
            self._shares[batch] = rows, self.layout_for(rows)
        return self._shares[batch]

    def rows(self, batch: int) -> tuple[int, ...]:
        """The samples of `layout` that the rows of a call of `batch` are: copies of all, one after another."""
        assert self.layout is not None
        if batch % self.layout.batch:
            raise ValueError(f"a call of batch {batch} does not hold whole copies of a batch of {self.layout.batch}")
        return tuple(range(self.layout.batch)) * (batch // self.layout.batch)

    def guided(self, batch: int) -> list[bool]:
        """Of each of the pipeline's samples, whether this step is guided; noted for the report."""
        assert self.guidance is not None
        stage = self.places[self.index][0]
        fine = [other.kind == "fine" for other in self.stages]
        now = self.guidance.guides(stage, fine, self.sigma)
        found = [now and number not in self._unguided for number in self._numbers[:batch]]
        self._paired, self._guided = True, any(found) or bool(self._guided)
        return found

    def number(self, sample: int) -> int:
        """Which of the pipeline's samples, as they were at the first step, is now at this place in its batch."""
        return self._numbers[sample]

    def agreed(self, samples: Sequence[int]) -> None:
        """These samples' predictions agree: they are guided no more."""
        self._unguided.update(map(self.number, samples))

    def spare(self, flops: float) -> None:
        """Note what a part of a call that guidance leaves out would have cost."""
        self._spared += flops

    def _resize(self, latents: Tensor) -> None:
        """Notice a batch from which samples have gone since the last step, by what the scheduler gave them then."""
        assert self.layout is not None
        batch, own, before = latents.shape[0], self.layout.batch, self._call_batch
        self._call_batch = batch
        if not self._settled:
            return
        same = [] if self._latest is None else agreements(latents, self._image(self._latest))
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
        places = torch.arange(self.layout.batch, device=self.layout.refined.device)
        rows = torch.stack([places[place] for place in kept])  # a copy to the device would wait
        self.layout = self.layout.pick(rows)
        self.noise = None if self.noise is None else self.noise[rows]
        self._canvas = None if self._canvas is None else self._canvas[rows]
        self._history = [known[rows] for known in self._history]
        if of_calls:
            self._layouts, self._shares, self.tables = {}, {}, {}
            self._emitted = None if self._emitted is None else self._follow(self._emitted, rows)
            self._latest = None if self._latest is None else self._latest[rows]

    def _follow(self, emitted: Snapshot, rows: Tensor) -> Snapshot | None:
        """What was handed out, of some samples; the pipeline's own cut of it is another tensor of the same values."""
        return Snapshot(emitted.tensor[rows], None, emitted.tensor[rows]) if emitted.untouched else None

    def model_input(self, latents: Tensor, rows: Sequence[int]) -> Tensor:
        """The canvas that the model is to see, (b, C, H, W): coarse noise at the first step, else the given latents."""
        if self._canvas is None or self._emitted is not None:
            return latents
        canvas = self._canvas.to(latents.dtype)
        return canvas if len(rows) == len(canvas) else torch.stack([canvas[row] for row in rows])

    def layout_for(self, rows: tuple[int, ...]) -> TokenLayout:
        """The current layout for a call on these of its samples; the same object all through a stage."""
        assert self.layout is not None
        if rows not in self._layouts:
            if len(rows) % self.layout.batch == 0 and rows == self.rows(len(rows)):
                self._layouts[rows] = self.layout.repeat(len(rows))
            else:
                self._layouts[rows] = self.layout.pick(Samples.of(rows, self.layout.refined.device).rows)
        return self._layouts[rows]

    @property
    def extent(self) -> tuple[int, int]:
        """(rows, columns) of the grid that position ids count on: of fine tokens, or in their own frame of coarse."""
        assert self.layout is not None
        fine = self.method is not None and self.method.frame == "fine"
        return self.layout.fine_grid if fine else self.layout.cells

    def positions(self, layout: TokenLayout) -> Tensor:
        """(B, n, 2) float32 position ids of the layout's tokens, made once a layout."""
        key = ("positions", id(layout))
        if key not in self.tables:
            assert self.method is not None
            anchor = ANCHORS[self.method.anchor]
            ids = layout.positions(anchor)
            self.tables[key] = ids if self.method.frame == "fine" else (ids - anchor) / 2
        return self.tables[key]

    def count_call(self, full_flops: Callable[[], float], samples: int) -> None:
        """Note one denoiser call on so many samples (0: it was answered), and what it would cost in full.

        What only some steps call (skip-layer guidance), the plain run calls at as large a share of its own steps.
        """
        if not self._asked_first:
            self.report.baseline_flops += full_flops() * self.report.baseline_steps
        elif self._asked >= self._asked_first:
            share = self.report.baseline_steps / (len(self.places) - self._start)
            self.report.baseline_flops += full_flops() * share
        self._asked += 1
        if samples:
            self.calls += 1
            self._samples += samples

    def add_flops(self, flops: float, saved: float = 0.0) -> None:
        """Note what (a part of) the present call costs, and how much more it would without reuse."""
        if len(self._costs) < self.calls:
            self._costs.append((flops, saved))
        else:
            before = self._costs[-1]
            self._costs[-1] = (before[0] + flops, before[1] + saved)

    def branch(
        self,
        denoiser: object,
        rows: tuple[int, ...],
        layout: TokenLayout,
        tensors: Mapping[str, Tensor],
        settings: tuple[Any, ...],
    ) -> Branch:
        """The temporal state of the samples that the present call computes; a new one if they can't be told.

        rows: the samples of the run's layout that the call is on; layout: theirs. tensors, settings: see `Identity`. A
        branch serves one call a step.
        """
        assert self.policy is not None
        numbers, used = tuple([self._numbers[row] for row in rows]), self._used
        free = [branch for branch in self._branches if branch.denoiser is denoiser and branch not in used]
        for branch in free:
            if branch.layout is layout and branch.identity.is_still(numbers, tensors, settings):
                used.append(branch)
                return branch
        identity = Identity.of(numbers, tensors, settings, self.watched)
        followed = (branch.followed(identity, layout) for branch in free)
        found = next((branch for branch in followed if branch is not None), None)
        self._used.append(found or Branch(self.policy, layout, identity, denoiser))
        return self._used[-1]

    def situation(self) -> Situation:
        """Where the run stands, as a temporal policy needs to know it; the same object for all calls of a step."""
        if not self._situations:
            self._situations = [self._situate(index) for index in range(self._start, len(self.places))]
            if isinstance(self.policy, Counting):
                self.policy.foresee(self._situations)
        return self._situations[self.index - self._start]

    def _situate(self, index: int) -> Situation:
        stage, step = self.places[index]
        before = sum(s == stage for s, _ in self.places[: self._start])
        steps = self.stages[stage].steps
        return Situation(
            step=index - self._start,
            steps=len(self.places) - self._start,
            stage=stage,
            stage_step=step - before,
            stage_steps=steps - before,
            ends_stage=step + 1 == steps and stage + 1 < len(self.stages),
            sigma=self.stages[stage].sigmas[step],
        )

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
            self.noise = noise.float()
        assert self.layout is not None
        clean = self.layout.project(image.float())
        return (1 - self.sigma) * clean + self.sigma * self._noise_on(self.layout, noise.float())

    def advance(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """One Euler step of the canvas and, at a stage's end, the transition; same form and dtype as `velocity`."""
        assert self.grid is not None and self.layout is not None
        x = self._state(sample)
        v = self.geometry.prediction_image(velocity, self.layout).float()
        x0 = x - self.sigma * v
        self._history = [*self._history, x0][-HISTORY:]
        x = x + (self.sigma_next - self.sigma) * v
        layout, branches = self.layout, self._branch_records()
        if self.ends_stage:
            x = self._transition(x, v, x0)
        self._canvas = x
        out = self.geometry.from_image(x, sample).to(velocity.dtype)
        self._emitted = Snapshot.of(out, self.watched)
        self.close_step(out, layout, branches)
        return out

    def close_step(
        self, sample: Tensor, layout: TokenLayout | None = None, branches: BranchNotes | None = None
    ) -> None:
        """Note the step to `sample`, made on `layout` with `branches` (by default the current ones); go to the next."""
        layout = layout or self.layout
        assert layout is not None
        now, notes = time.perf_counter(), self._branch_records() if branches is None else branches
        place = self.index, self.places[self.index], layout.tokens
        figures = self.calls, self._costs, now - self._clock, self._samples, self._guided, self._spared
        self.report.note(partial(_record, self.stages, place, figures, notes))
        if sample.is_cuda:
            event = _event(sample.device)
            self._events.append((self._event, event))
            self._event = event
        if not self._asked_first:
            self._asked_first = self._asked
        self._clock, self.calls, self._samples, self._costs = now, 0, 0, []
        self._asked, self._guided, self._spared = 0, None, 0.0
        self._branches, self._used = self._used, []  # one that paused begins anew
        self._latest = sample
        self.index += 1
        self.report.completed = self.finished

    def read_clocks(self) -> None:
        """On a GPU: the seconds of each step as its events measured them; waits for the last of them."""
        for place, (before, after) in enumerate(self._events):
            after.synchronize()
            steps = self.report.steps
            steps[place] = replace(steps[place], seconds=before.elapsed_time(after) / 1000)
        self._events.clear()

    # ---- inner workings

    def _branch_records(self) -> BranchNotes:
        """What the branches did in this step; asked for before a transition moves what they have cached."""
        return [branch.report(*cost) for branch, cost in zip(self._used, self._costs, strict=False)]

    def _open(self, grid: tuple[int, int], batch: int, device: torch.device) -> TokenLayout:
        rows, columns = grid
        self.grid = grid
        self.report.size, self.report.batch = grid, batch
        if self.method is None:  # one grid of tokens, whatever its size; nothing is refined or reduced
            self.layout = TokenLayout.coarse(batch, rows, columns, self.geometry.patch, device, self.frames)
            return self.layout
        if self.frames == 1 and self.method.regions_over_time != "frame":
            raise ValueError(
                f"regions_over_time={self.method.regions_over_time!r} is for videos, and this call makes single "
                "images; leave it out"
            )
        rows //= self.frames
        if rows % 2 or columns % 2:
            pixels = self.geometry.pixels
            nearest = (rows + rows % 2) * pixels, (columns + columns % 2) * pixels
            raise ValueError(
                f"height and width must be multiples of {2 * pixels} for spatial stages, got "
                f"{rows * pixels}x{columns * pixels}; nearest: {nearest[0]}x{nearest[1]}"
            )
        make = TokenLayout.fine if self.stage.kind == "fine" else TokenLayout.coarse
        self.layout = make(batch, self.frames * rows // 2, columns // 2, self.geometry.patch, device, self.frames)
        return self.layout

    def _noise_on(self, layout: TokenLayout, noise: Tensor | None = None) -> Tensor:
        noise = self.noise if noise is None else noise
        assert noise is not None and self.method is not None
        if layout.all_fine:
            return noise
        return torch.where(layout.fine_pixels, noise, coarse_noise(noise, self.method.start))

    def _state(self, sample: Tensor) -> Tensor:
        assert self.grid is not None and self.layout is not None
        first = self._emitted is None and self._canvas is not None
        if first or (self._emitted is not None and self._is_ours(sample, self._emitted)):
            assert self._canvas is not None
            return self._canvas
        return self.layout.project(self._image(sample).float())

    def _is_ours(self, sample: Tensor, emitted: Snapshot) -> bool:
        """True if the sample is what was handed out: the very tensor, or what followed it into a smaller batch."""
        if sample is emitted.tensor:
            return emitted.untouched
        return emitted.version is None and sample.shape == emitted.tensor.shape and torch.equal(sample, emitted.tensor)

    def _transition(self, x: Tensor, v: Tensor, x0: Tensor) -> Tensor:
        assert self.layout is not None and self.noise is not None and self.method is not None
        upcoming = self.stages[self.places[self.index][0] + 1]
        before = self.layout
        self.layout = self._choose(x0, v, upcoming=upcoming)
        calls = [*self._layouts]
        self._layouts, self._shares, self.tables = {}, {}, {}
        for rows in calls:  # what waits for the device does so here, not in the steps to come
            _ = self.layout_for(rows).shared
        self._carry_over()
        self._on_layout()
        split = self.layout.fine_pixels & ~before.fine_pixels
        sigma, sigma_next = self.sigma_next, upcoming.sigmas[0]
        self._history = []
        if self.method.noise == "paper":
            white = seeded_noise(self.noise, f"transition at step {self.index}")
            return renoise_paper(x, sigma, sigma_next, split, before.fine_pixels, white)
        lift = make_lift(self.method.lift, self.autoencoder.decode, self.autoencoder.encode, self.frames)
        return renoise_rewind(x, v, sigma, sigma_next, split, self.noise, lift)

    def _carry_over(self) -> None:
        """Move what the branches have cached to the new layout; the paper's noise is fresh for every token."""
        fresh = self.method is not None and self.method.noise == "paper"
        for branch in self._used:
            layout = self.layout_for(tuple(self._numbers.index(number) for number in branch.identity.samples))
            changed = torch.full((layout.batch, layout.tokens), fresh, device=layout.refined.device)
            branch.transfer(layout, changed)

    def _choose(self, x0: Tensor, velocity: Tensor, upcoming: Stage | None = None, started: bool = True) -> TokenLayout:
        """The layout of the upcoming (or, before the first step, the current) stage, regions chosen per sample."""
        assert self.layout is not None and self.method is not None
        stage = upcoming or self.stage
        batch, cells, frames = self.layout.batch, self.layout.cells, self.frames
        if stage.kind == "fine":
            return TokenLayout.fine(batch, *cells, self.geometry.patch, x0.device, frames)
        scorer = self.method.scorer
        if not started and scorer.needs & {"history", "text_attention"}:
            self.report.notices.append(f"regions by latent-gradient: {scorer.name!r} needs steps before the start")
            scorer = get_scorer("latent-gradient")
        attention = None if self.text_attention is None else self._per_cell(self.text_attention[-batch:])
        if attention is not None:
            attention = attention.reshape(batch * frames, -1, cells[1])
        history = tuple(split_frames(known, frames) for known in self._history) if started else ()
        x0, velocity = split_frames(x0, frames), split_frames(velocity, frames)
        evidence = Evidence(
            x0=x0, velocity=velocity, history=history or (x0,), patch=self.geometry.patch,
            decode=self.autoencoder.decode, text_attention=attention, frames=frames,
        )  # fmt: skip
        scores = scorer.score(evidence)
        if self.method.regions_over_time == "shared":
            scores = share_over_time(scores, frames)
        already = self.layout.refined.reshape(scores.shape)
        mask = select_top(scores, stage.ratio, already).view(batch, *cells)
        regions = mask.cpu().numpy()
        self.report.regions.append(regions)
        self.text_attention = None
        return replace(self.layout, refined=mask, counted=int(regions[0].sum()))

    def _per_cell(self, per_token: Tensor) -> Tensor:
        """(B, n) values of the layout's tokens -> (B, Y, X) means over the cells."""
        assert self.layout is not None
        patch = self.geometry.patch
        image = self.layout.expand(per_token[..., None].expand(-1, -1, patch * patch).contiguous())
        return torch.nn.functional.avg_pool2d(image, 2 * patch)[:, 0]
