"""What a run's predictions are used for once they were computed: forecasts in their place, and a solver's steps.

One object a run. It knows nothing of pipelines: `Run` asks it how the canvas goes on, the root hook whom to compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ralu_cache.engine.conditions import Conditions
from ralu_cache.engine.deciding import Chooser, Seen, Verifier, Watcher
from ralu_cache.engine.ranked import common
from ralu_cache.history.lines import forecast
from ralu_cache.history.nodes import Predictions, Renoise
from ralu_cache.history.solvers import Made, Multistep, correct, step
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.temporal import Temporal
from ralu_cache.temporal.base import relative_change
from ralu_cache.temporal.prediction import Forecast


def predictions_of(temporal: Temporal | None, solver: Multistep | None, stages: int) -> Prediction | None:
    """The predictions of a run of so many stages, or None where nothing reads them.

    Raises ValueError for settings that do not fit the plan.
    """
    if isinstance(temporal, Forecast):
        temporal.check_stages(stages)
        chooser = None if temporal.tolerance is None else Verifier(temporal.tolerance, temporal.max_gap, temporal.order)
        return Prediction(temporal, solver, stages, chooser)
    if temporal is not None and getattr(temporal, "reuse", "residual") == "prediction":
        carried = {"inherit": "keep"}.get(temporal.transition, temporal.transition)
        settings = Forecast(1, order=temporal.order, transition=carried)
        return Prediction(settings, solver, stages, Watcher(temporal))
    return None if solver is None else Prediction(Forecast(1), solver, stages)


class Prediction:
    """The predictions of one run, and how its canvas goes on from them.

    settings: of the forecasts. solver: None for Euler steps. chooser: decides in the run; None where the plan does.
    """

    def __init__(
        self, settings: Forecast, solver: Multistep | None, stages: int, chooser: Chooser | None = None
    ) -> None:
        self.settings, self.solver, self.chooser = settings, solver, chooser
        self.quantity = settings.quantity_of(stages)
        self.conditions = Conditions()  # under which they were made
        self.known: Predictions | None = None
        self.skipped: frozenset[int] = frozenset()  # in this step
        self._decided = -1
        self._base: Tensor | None = None  # the canvas at each sample's newest node
        self._made: Made | None = None

    def close(self) -> None:
        self.conditions.clear()
        self.known = self._base = self._made = self.chooser = None

    @property
    def nbytes(self) -> int:
        """Bytes of the history, and of the canvas that a solver starts from."""
        base = 0 if self._base is None or self.solver is None else self._base.nbytes
        return base + (0 if self.known is None else self.known.nbytes)

    @property
    def is_plain(self) -> bool:
        """True if the present step is one that no forecast and no solver has a part in."""
        return self.solver is None and not self.skipped

    # ---- whom to compute

    def plan(self, counts: Sequence[int]) -> list[bool]:
        """Of every step of stages of so many steps, whether the pipeline is shown it."""
        return [True] * sum(counts) if self.chooser is not None else self.settings.computed(counts)

    def forces(self, step: int, steps: int, begins: bool) -> bool:
        """True if every sample is computed in a step; begins: it is the first of a stage."""
        return begins or step < self.settings.first or step >= steps - self.settings.last

    def decide(self, place: int, forced: bool, batch: int, seen: Callable[[], Seen]) -> frozenset[int]:
        """The samples that are forecast in the step at a place; decided once a step. forced: none may be.

        seen: what a chooser may look at.
        """
        if self._decided != place:
            self._decided, self.skipped = place, frozenset()
            if self.chooser is not None:
                known = self.known
                readable = [not forced and known is not None and bool(known.places(s)) for s in range(batch)]
                self.skipped = frozenset(self.chooser.skip(place, readable, seen))
        return self.skipped

    def compute_all(self) -> None:
        """Whatever was decided for this step: every sample is computed."""
        self.skipped = frozenset()

    # ---- what is computed

    def take(
        self, canvas: Tensor, velocity: Tensor, sigma: float, layout: TokenLayout, ours: bool
    ) -> tuple[Tensor, Tensor]:
        """(canvas, velocity) of the step at level `sigma`, once the model was asked: mended, kept, or forecast.

        ours: the canvas is what the last step led to. Nothing of a sample that was skipped is kept.
        """
        known, kinds = self.known or Predictions(layout, self.settings.depth), self.conditions.kinds(len(canvas))
        rows = [sample for sample in range(len(canvas)) if sample not in self.skipped]
        if rows:
            before = known
            if self.settings.transition == "keep" and (behind := before.behind.intersection(rows)):
                known = known.above(sigma, sorted(behind))
            known = known.record(canvas - sigma * velocity, velocity, sigma, kinds, rows)
            known = self._shift(before, known, layout, sigma, rows)
            if self.solver is not None:
                canvas = correct(self.solver, known, self._made if ours else None, canvas)
        self.known = known
        if self.skipped:
            guess = self.velocity(canvas, sigma, layout)
            velocity = torch.stack([guess[s] if s in self.skipped else velocity[s] for s in range(len(canvas))])
        if self.solver is not None:
            old = self._base if ours and self._base is not None else canvas
            self._base = canvas if not self.skipped else torch.stack(
                [old[s] if s in self.skipped else canvas[s] for s in range(len(canvas))]
            )
        return canvas, velocity

    def learn(
        self, canvas: Tensor, velocity: Tensor, place: int, sigma: float, levels: Sequence[float], layout: TokenLayout
    ) -> None:
        """Tell the chooser how wrong forecasts would have been, before anything of the step is kept."""
        if self.chooser is None:
            return
        rows = [sample for sample in range(len(canvas)) if sample not in self.skipped]
        known = self.known
        errors = [math.nan] * len(canvas)
        if known is not None and any(len(known.places(s)) > self.settings.order for s in rows):
            guess = self.velocity(canvas, sigma, layout)
            errors = common(relative_change(velocity, guess)).tolist()
        for sample in rows:
            enough = known is not None and len(known.places(sample)) > self.settings.order
            self.chooser.learn(sample, place, sigma, errors[sample] if enough else math.nan, levels)

    # ---- how it goes on

    def velocity(self, canvas: Tensor, sigma: float, layout: TokenLayout) -> Tensor:
        """What the prediction would be at a level to which the canvas has come."""
        assert self.known is not None
        how = self.settings
        value = forecast(self.known, layout, sigma, self.quantity, how.order, how.gap, how.damping)
        return (canvas - value) / sigma if self.quantity == "clean" else value

    def clean(self, sigma: float, layout: TokenLayout) -> Tensor:
        """What the clean estimate would be at a level."""
        assert self.known is not None
        how = self.settings
        return forecast(self.known, layout, sigma, "clean", how.order, how.gap, how.damping)

    def leap(self, canvas: Tensor, to: float, left: int, layout: TokenLayout) -> Tensor:
        """The solver's canvas at a level, from where each sample was last computed."""
        assert self.solver is not None and self.known is not None and self._base is not None
        self.known.under(layout)
        moved, self._made = step(self.solver, self.known, self._base, to, left)
        return moved

    def transfer(self, layout: TokenLayout, renoise: Renoise, changed: Tensor) -> None:
        """A transition to `layout`."""
        self._base = self._made = None
        if self.chooser is not None:
            self.chooser.moved()
        if self.known is None or self.settings.transition == "reset":
            self.known = Predictions(layout, self.settings.depth)
        else:
            self.known = self.known.transfer(layout, renoise, changed)

    def forget(self) -> None:
        """Another denoiser or prompt, or other guidance, from now on: forecasts begin anew. What a solver steps on goes
        on, as in stock."""
        if self.solver is None:
            self.known = None
            if self.chooser is not None:
                self.chooser.moved()

    def pick(self, rows: Sequence[int], layout: TokenLayout) -> None:
        """Go on with some of the samples alone, under a layout that has theirs."""
        if self.known is not None:
            self.known = self.known.pick(rows, layout)
        self._made = None if self._made is None else self._made.pick(rows)
        self._base = None if self._base is None else torch.stack([self._base[row] for row in rows])
        self.skipped = frozenset(place for place, row in enumerate(rows) if row in self.skipped)
        if self.chooser is not None:
            self.chooser.pick(rows)

    def _shift(
        self, before: Predictions, known: Predictions, layout: TokenLayout, sigma: float, rows: Sequence[int]
    ) -> Predictions:
        """With "trend": what stood before a transition, shifted to what was computed first behind it."""
        behind = [sample for sample in rows if sample in before.behind and before.places(sample)]
        if self.settings.transition != "trend" or not behind:
            return known
        how = self.settings
        parts = [
            known.nodes[0].value(quantity) - forecast(before, layout, sigma, quantity, how.order, how.gap)
            for quantity in ("clean", "velocity")
        ]
        return known.shifted(parts[0], parts[1], behind)
