"""Run: the denoiser's calls in one pipeline call, made when the timesteps are set and closed at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ralu_cache.adapters.calls import LayoutCall, Setting
from ralu_cache.engine.branches import Branch
from ralu_cache.engine.deciding import Seen
from ralu_cache.engine.passage import Passage
from ralu_cache.engine.shares import Rows, Shares
from ralu_cache.history.attention import Rows as FreshRows
from ralu_cache.history.ledger import Samples
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.temporal.base import Counting
from ralu_cache.temporal.policy import Policy, Situation


@dataclass(frozen=True, slots=True)
class Terms:
    """What a run serves the calls of a denoiser by.

    policy: what reuses something of it, if anything does; looks: at a signal. setting: what adapters are told when they
    check a call. situations: where the run stands at each of its steps, as the policy needs to know it.
    """

    policy: Policy | None
    setting: Setting
    looks: bool
    situations: Mapping[int, Situation]


Signals = tuple[Callable[[], Tensor], Callable[[], Tensor]]


class Run(Passage):
    """The calls of the denoisers on the way of one pipeline call; the root hooks call it, and the scheduler's copy.

    believed_steps: how many the pipeline takes it for, where it does not count the levels it is given.
    """

    believed_steps: int | None = None

    def close(self) -> None:
        """See `Passage.close`."""
        super().close()
        self._terms.clear()
        vars(self).pop("_situations", None)

    # ---- where the run stands

    @property
    def calls(self) -> int:
        """Calls of the denoiser in this step, that ran."""
        return self.tally.calls

    @cached_property
    def _terms(self) -> dict[int, Terms]:
        """By policy; made anew where the run begins elsewhere."""
        return {}

    def terms(self, denoiser: object) -> Terms:
        """What calls of a denoiser are served by; the same object for all of them."""
        policy = self._low[1] if self._low is not None and denoiser is self._low[0] else self.policy
        if (known := self._terms.get(id(policy))) is None:
            known = self._terms[id(policy)] = self._terms_of(policy)
        return known

    def _terms_of(self, policy: Policy | None) -> Terms:
        caches = None if policy is None else policy.caches
        setting = Setting(self.method is not None, caches, len(self.places), self.believed_steps, self.leaves_out)
        if policy is None:
            return Terms(None, setting, False, {})
        plan, looks = self.situations(), policy.signal is not None
        if isinstance(policy, Counting):
            policy.foresee(plan)
        return Terms(policy, setting, looks, dict(enumerate(plan, self._start)))

    @cached_property
    def _situations(self) -> list[Situation]:
        """Of all steps, for choosers; made at the first."""
        return self.situations()

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
        self._begins_elsewhere()

    def start_at(self, index: int) -> None:
        """See `Course.start_at`."""
        super().start_at(index)
        self._begins_elsewhere()

    def _begins_elsewhere(self) -> None:
        self._terms.clear()
        self.report.baseline_steps = self.stock.steps

    # ---- which samples, on which tokens

    def begin(
        self, grid: tuple[int, int], batch: int, device: torch.device, image: Callable[[], Tensor], frames: int = 1
    ) -> None:
        """First sight of the latent image (B, C, H, W): fixes the grid, the first layout and the coarse noise.

        The first call of a run may be a stack of copies of the pipeline's batch; `settle` tells them from it. Later
        calls tell when the batch shrinks. `image` is asked for where it is looked at. frames: of a video, that stand
        one below the other in H. Raises ValueError for a grid that cells do not tile, latents given for a start in
        mid-schedule, or samples that cannot be told.
        """
        if self.layout is not None:
            if batch != self.batch.rows:
                self._resize(image())
            return
        self.frames = frames
        self.batch.open(batch)
        self.tally.start(device)
        layout = self._open(grid, batch, device)
        if self.method is None:
            return
        if self._entered:
            if self.stage.kind != "fine":
                raise ValueError(
                    "latents= together with a start in mid-schedule (strength < 1) is not supported: the noise in them "
                    "is unknown, so they cannot be reduced to coarse tokens; pass image= without latents="
                )
            self.layout = TokenLayout.fine(batch, grid[0] // 2, grid[1] // 2, self.geometry.patch, device, frames)
            return
        self.canvas.begin(image(), layout, self.method)

    def settle(self, batch: int) -> None:
        """Keep the pipeline's own `batch` of what a first, stacked call has opened; the copies follow it in order.

        Once, with the first step.
        """
        assert self.layout is not None
        if batch > self.layout.batch:
            raise RuntimeError(
                f"the scheduler steps with {batch} samples, the denoiser was called on {self.layout.batch}: this "
                "pipeline goes on in a way of its own, which is not supported; disable it"
            )
        self.batch.settle(batch)
        self.report.batch = batch
        if self.prediction is not None:
            self.prediction.conditions.settle(batch)
        if batch != self.layout.batch:
            self.branches.settle(batch)
            self.shares.settle(batch)
            self._keep_samples(range(batch), of_calls=False)

    def share(self, batch: int) -> tuple[Rows, TokenLayout]:
        """The rows of a call of the pipeline's on so many samples, and the layout of its tokens."""
        assert self.layout is not None
        return self.shares.of(batch, self.layout)

    def layout_for(self, rows: Rows) -> TokenLayout:
        """The current layout for a call on these of its samples; the same object all through a stage."""
        assert self.layout is not None
        return self.shares.layout_of(rows, self.layout)

    def placed(
        self,
        layout: TokenLayout,
        positions: Tensor | None,
        call: Mapping[str, Any],
        samples: Tensor | None = None,
        fresh: FreshRows | None = None,
    ) -> LayoutCall:
        """What the model's own hooks are to know of a call, or of a group's part of it; see `LayoutCall`."""
        method, extent = self.method, layout.cells
        if method is not None and method.positions == "fine":
            extent = layout.fine_grid
        return LayoutCall(layout, positions, call, self.shares.tables, extent, samples, fresh, method is not None)

    def guided(self, batch: int) -> list[bool]:
        """Of each of the pipeline's samples, whether this step is guided; noted for the report."""
        now = self._guides(self.index)
        found = [now and number not in self.batch.unguided for number in self.batch.numbers[:batch]]
        self.tally.paired, self.tally.guided = True, any(found) or bool(self.tally.guided)
        skipped = () if self.prediction is None else self.prediction.skipped
        return [wanted and sample not in skipped for sample, wanted in enumerate(found)]

    def number(self, sample: int) -> int:
        """Which of the pipeline's samples, as they were at the first step, is now at this place in its batch."""
        return self.batch.numbers[sample]

    def agreed(self, samples: Sequence[int]) -> None:
        """These samples' predictions agree: they are guided no more."""
        self.batch.unguided.update(map(self.number, samples))

    def _resize(self, latents: Tensor) -> None:
        """Notice a batch from which samples have gone since the last step, by what the scheduler gave them then."""
        latest = self.canvas.latest
        kept = self.batch.left_of(latents, None if latest is None else self._image(latest))
        if kept is not None:
            self.batch.keep(kept)
            self._keep_samples(kept)

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

    # ---- what is kept of calls, and stands in for them

    def branch(
        self,
        denoiser: object,
        policy: Policy,
        rows: Rows,
        layout: TokenLayout,
        tensors: Mapping[str, Tensor],
        settings: tuple[Any, ...],
    ) -> Branch:
        """The temporal state of the samples that a call computes: see `BranchBook.find`."""
        numbers = tuple(map(self.batch.numbers.__getitem__, rows))
        return self.branches.find(denoiser, numbers, layout, tensors, settings, policy)

    def condition(
        self, rows: Sequence[int], tensors: Mapping[str, Tensor], settings: tuple[Any, ...]
    ) -> tuple[int, int] | None:
        """What a call on all of its rows is conditioned on, as a number, and how many copies of the batch it has.

        None where no predictions are kept. rows, tensors, settings: as `branch` takes them.
        """
        if self.prediction is None or self.layout is None:
            return None
        samples = tuple(map(self.batch.numbers.__getitem__, rows))
        number = self.prediction.conditions.recognise(samples, tensors, settings, self.watched)
        return number, len(rows) // self.layout.batch

    def called(self, condition: tuple[int, int], rows: Sequence[int]) -> None:
        """A call was made under a condition, for these rows."""
        assert self.prediction is not None
        self.prediction.conditions.called(*condition, rows)

    def decide(self, condition: tuple[int, int] | None, signals: Callable[[], Signals]) -> frozenset[int]:
        """The samples whose prediction is forecast in this step, by who decides in the run; once a step.

        condition: of the step's first call. signals: gives that call's, "modulated" and "canvas", as functions.
        """
        prediction, layout = self.prediction, self.layout
        if prediction is None or prediction.chooser is None or layout is None or condition is None:
            return frozenset()

        def look() -> Seen:
            return Seen(self._situations[self.index - self._start], layout, *signals())

        forced = self.turns or self.changes or self.wants_text_attention or prediction.conditions.unlike(*condition)
        forced = forced or prediction.forces(self.index - self._start, self.steps, self.begins_stage)
        return prediction.decide(self.index, forced, layout.batch, look)

    def compute_all(self) -> None:
        """Whatever was decided for this step, every sample is computed."""
        if self.prediction is not None:
            self.prediction.compute_all()

    def forecast(self) -> Tensor:
        """The velocities (B, C, H, W) that stand in for predictions which are not computed, where the canvas is now."""
        assert self.prediction is not None and self.layout is not None and self.canvas.value is not None
        return self.prediction.velocity(self.canvas.value, self.sigma, self.layout)
