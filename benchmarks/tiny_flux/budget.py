"""How long a stage trains: a number of steps, or minutes of active time that don't count pauses."""

import time
from dataclasses import dataclass, field

LONGEST_STEP = 20.0
"""Seconds counted for one step at most: a process that was stopped for minutes has not trained for minutes."""


@dataclass
class Budget:
    """Progress of one stage towards `steps` (if given) or `minutes`."""

    minutes: float
    steps: int | None = None
    step: int = 0
    seconds: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}; at least 1 is needed")
        if not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes}; a positive number is needed")

    @property
    def fraction(self) -> float:
        """Share of the budget that is used up; 1 or more means stop."""
        if self.steps is not None:
            return self.step / self.steps
        return self.seconds / (60 * self.minutes)

    def tick(self) -> None:
        """Count one finished step."""
        now = time.monotonic()
        self.seconds += min(now - self._last, LONGEST_STEP)
        self._last = now
        self.step += 1

    def left(self) -> str:
        """Estimated active time until the end, for a log line."""
        if self.fraction <= 0:
            return "unknown"
        return f"{self.seconds * (1 / self.fraction - 1) / 60:.1f} min left"


def learning_rate_factor(step: int, fraction: float, warmup: int, hold: float) -> float:
    """Linear warm-up over `warmup` steps, full rate until `fraction` is `hold`, then linear decay to 1 %."""
    decay = 1.0 if fraction < hold else max(0.01, (1 - fraction) / (1 - hold))
    return min(1.0, (step + 1) / warmup) * decay
