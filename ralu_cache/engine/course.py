"""Course: the stages of a run laid out step by step, where it stands in them, and the schedule that was asked for."""

from __future__ import annotations

from bisect import bisect_left

from ralu_cache.engine.levels import StockSchedule, entering
from ralu_cache.engine.predictions import Prediction
from ralu_cache.plane.guidance import Guidance
from ralu_cache.plane.spatial import Stage
from ralu_cache.temporal.policy import Situation


class Course:
    """The levels that a run takes. stock: the schedule that the caller asked for; index: the step that comes. boundary:
    the level below which another denoiser is called, if there is one.

    places: of every step, its stage and its number in that; shown: the places of the steps that the pipeline makes, and
    not the run by itself. Levels are sigma, 1 noise to 0 clean.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        stock: StockSchedule | None = None,
        guidance: Guidance | None = None,
        prediction: Prediction | None = None,
        boundary: float | None = None,
    ) -> None:
        self._boundary = 0.0 if boundary is None else boundary
        self.stock = stock or StockSchedule(stages[-1].sigmas)
        self.guidance = guidance
        self.prediction = prediction
        self.index = 0
        self._start = 0
        self._entered = False  # in mid-schedule
        self._plan = stages
        self._lay_out(stages)

    @property
    def stage(self) -> Stage:
        return self.stages[self.places[self.index][0]]

    @property
    def sigma(self) -> float:
        return self._level(self.index)

    @property
    def sigma_next(self) -> float:
        """The level this step integrates to, before any transition."""
        s, i = self.places[self.index]
        return self.stages[s].sigmas[i + 1]

    @property
    def finished(self) -> bool:
        return self.index == len(self.places)

    @property
    def done(self) -> int:
        """How many of `total` steps are made; those before a start in mid-schedule count as made."""
        return self.index

    @property
    def total(self) -> int:
        return len(self.places)

    @property
    def ends_stage(self) -> bool:
        """True if a transition follows this step."""
        s, i = self.places[self.index]
        return i + 1 == self.stages[s].steps and s + 1 < len(self.stages)

    @property
    def begins_stage(self) -> bool:
        """True if this is the first step of its stage that is made."""
        return self.index == self._start or self.places[self.index][0] != self.places[self.index - 1][0]

    @property
    def turns(self) -> bool:
        """True if guidance begins or ends with this step."""
        return self.index > self._start and self._guides(self.index) != self._guides(self.index - 1)

    @property
    def changes(self) -> bool:
        """True if with this step another denoiser is called than before."""
        return self._changes(self.index)

    @property
    def steps(self) -> int:
        """How many steps are made in all."""
        return len(self.places) - self._start

    @property
    def leaves_out(self) -> bool:
        """True if at some steps the model may not be called at all."""
        return len(self.shown) < self.steps or (self.prediction is not None and self.prediction.chooser is not None)

    @property
    def shown_index(self) -> int:
        """How many of the levels that the pipeline is shown are passed."""
        return bisect_left(self.shown, self.index)

    @property
    def passed(self) -> int:
        """How many steps of the stock schedule are done, at the level that the last step came to."""
        if not self.index:
            return 0
        s, i = self.places[self.index - 1]
        return self.stock.passed(self.stages[s].sigmas[i + 1])

    @property
    def stock_step(self) -> int:
        """The step that the stock schedule makes at this level."""
        return self.stock.after(self.stock.passed(self.sigma))

    def levels(self) -> list[float]:
        """One for each step that the pipeline is shown, and the last 0: what the scheduler hands out."""
        return [*(self._level(place) for place in self.shown), 0.0]

    def enter_at(self, entry: int) -> None:
        """Begin where the stock schedule is after so many steps (`strength`): at its level, whatever the plan's are."""
        self.stock = self.stock.entered(entry)
        self._entered = True
        self._lay_out(entering(self._plan, self.stock.sigmas[entry]))

    def start_at(self, index: int) -> None:
        """Begin at a later place of the stock schedule, which is the run's own: no stages are there."""
        self.index = self._start = index
        self._entered = True
        self._show()
        self.stock = self.stock.entered(index)

    def guided_as(self, place: int) -> int:
        """The stage of the plan whose guidance a step has: its own, or where a given picture entered a later one the
        one that would have been at this level."""
        stage, level = self.places[place][0], self._level(place)
        if not self._entered or any(before.steps for before in self.stages[:stage]):
            return stage
        return next(number for number, planned in enumerate(self._plan) if planned.sigmas[-1] < level)

    def situations(self) -> list[Situation]:
        """Where the run stands at each of its steps, as a temporal policy needs to know it."""
        found: list[Situation] = []
        steps, left = self.steps, self._start  # steps that a start in mid-schedule leaves out
        for number, stage in enumerate(self.stages):
            out, ends = min(left, stage.steps), number + 1 < len(self.stages)
            left -= out
            for step in range(out, stage.steps):
                at = len(found), steps, step - out, stage.steps - out
                found.append(Situation(*at, ends and step + 1 == stage.steps, stage.sigmas[step], number))
        return found

    def _lay_out(self, stages: tuple[Stage, ...]) -> None:
        self.stages = stages
        self.places = [(s, i) for s, stage in enumerate(stages) for i in range(stage.steps)]
        self._show()

    def _show(self) -> None:
        """Choose the steps that the pipeline is shown: those that are computed, where the plan decides that.

        One at which guidance begins or ends is, or another denoiser is called: what was computed with it, or by the one
        before, does not tell what is without.
        """
        self.shown = [*range(self._start, len(self.places))]
        if self.prediction is None:
            return
        counts = [sum(s == stage for s, _ in self.places[self._start :]) for stage in range(len(self.stages))]
        computed = self.prediction.plan(counts)
        guided = [self._guides(place) for place in self.shown]
        self.shown = [
            place for number, place in enumerate(self.shown)
            if computed[number] or guided[number] != guided[number - 1] or self._changes(place)
        ]  # fmt: skip

    def _changes(self, place: int) -> bool:
        low = [self._level(at) < self._boundary for at in range(max(place - 1, self._start), place + 1)]
        return low[0] != low[-1]

    def _level(self, place: int) -> float:
        stage, step = self.places[place]
        return self.stages[stage].sigmas[step]

    def _guides(self, place: int) -> bool:
        """Whether guidance is meant to be computed at a place; where nothing is said of it, the pipeline decides."""
        fine = [other.kind == "fine" for other in self.stages]
        return self.guidance is None or self.guidance.guides(self.guided_as(place), fine, self._level(place))
