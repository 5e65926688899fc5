"""Course: the stages of a run laid out step by step, where it stands in them, and the schedule that was asked for."""

from __future__ import annotations

from ralu_cache.engine.levels import StockSchedule, entering
from ralu_cache.plane.spatial import Stage
from ralu_cache.temporal.policy import Situation


class Course:
    """The levels that a run takes. stock: the schedule that the caller asked for; index: the step that comes.

    places: of every step, its stage and its number in that. Levels are sigma, 1 noise to 0 clean.
    """

    def __init__(self, stages: tuple[Stage, ...], stock: StockSchedule | None = None) -> None:
        self.stock = stock or StockSchedule(stages[-1].sigmas)
        self.index = 0
        self._start = 0
        self._entered = False  # in mid-schedule
        self._lay_out(stages)

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
    def steps(self) -> int:
        """How many steps are made in all."""
        return len(self.places) - self._start

    @property
    def passed(self) -> int:
        """How many steps of the stock schedule are done, at the level that the last step came to."""
        if not self.index:
            return 0
        s, i = self.places[self.index - 1]
        return self.stock.passed(self.stages[s].sigmas[i + 1])

    def levels(self) -> list[float]:
        """One a step, and the last 0: what the scheduler hands out."""
        return [*(level for stage in self.stages for level in stage.sigmas[:-1]), 0.0]

    def enter_at(self, entry: int) -> None:
        """Begin where the stock schedule is after so many steps (`strength`): at its level, whatever the plan's are."""
        self.stock = self.stock.entered(entry)
        self._entered = True
        self._lay_out(entering(self.stages, self.stock.sigmas[entry]))

    def start_at(self, index: int) -> None:
        """Begin at a later place of the stock schedule, which is the run's own: no stages are there."""
        self.index = self._start = index
        self._entered = True
        self.stock = self.stock.entered(index)

    def situations(self) -> list[Situation]:
        """Where the run stands at each of its steps, as a temporal policy needs to know it."""
        return [self._situate(index) for index in range(self._start, len(self.places))]

    def _situate(self, index: int) -> Situation:
        stage, step = self.places[index]
        before = sum(s == stage for s, _ in self.places[: self._start])
        steps = self.stages[stage].steps
        return Situation(
            step=index - self._start,
            steps=self.steps,
            stage=stage,
            stage_step=step - before,
            stage_steps=steps - before,
            ends_stage=step + 1 == steps and stage + 1 < len(self.stages),
            sigma=self.stages[stage].sigmas[step],
        )

    def _lay_out(self, stages: tuple[Stage, ...]) -> None:
        self.stages = stages
        self.places = [(s, i) for s, stage in enumerate(stages) for i in range(stage.steps)]
