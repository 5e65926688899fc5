"""What the page's fields hold, checked, as an order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ralu_cache.app.orders import Order, guidance_of
from ralu_cache.app.studio import Studio
from ralu_cache.models.embedded import EMBEDDED

SPEEDUP, PARTS = "A speed-up", "Each part"
WAYS = (SPEEDUP, PARTS)
MOST_STEPS = 200
MOST_SIDE = 4  # times the model's own: beyond it a step may take so long that nobody would wait for Cancel


@dataclass(frozen=True)
class Form:
    """The fields in the page's order; an empty number is None and leaves the choice to the pipeline."""

    model: str
    prompt: str
    negative_prompt: str
    guidance: float | None
    seed: int | None
    steps: int | None
    width: int | None
    height: int | None
    way: str
    speedup: float
    spatial: str
    temporal: str
    solver: str
    guided: str

    def order(self, studio: Studio) -> Order:
        """Raises ValueError, naming the field, the value and what is accepted."""
        most = MOST_SIDE * own_side(studio)
        _check("Steps", self.steps, 1, MOST_STEPS)
        _check("Width", self.width, 8, most)
        _check("Height", self.height, 8, most)
        guided = guidance_of(self.model, studio.pipe)
        request = replace(
            studio.request, prompt=[self.prompt or ""], negative_prompt=self.negative_prompt or None,
            steps=self.steps, width=self.width, height=self.height, seed=self.seed or 0,
        )  # fmt: skip
        if guided is not None and self.guidance is not None:
            given: dict[str, Any] = {guided[0]: float(self.guidance)}
            request = replace(request, **given)
        return Order(request, self._parts())

    def _parts(self) -> dict[str, Any]:
        if self.way == SPEEDUP:
            return {"speedup": float(self.speedup)}
        given = {"spatial": self.spatial, "temporal": self.temporal, "solver": self.solver, "guidance": self.guided}
        parts = {name: value for name, value in given.items() if value and value != "none"}
        if not parts:
            raise ValueError("every part is 'none', so there is nothing to compare; choose at least one of them")
        return parts


def own_side(studio: Studio) -> int:
    """Pixels of a side that the model is made for."""
    if studio.request.model in EMBEDDED:
        return EMBEDDED[studio.request.model].size
    scale = getattr(studio.pipe, "vae_scale_factor", 8)
    return int(getattr(studio.pipe, "default_sample_size", 128) * scale)


def _check(field: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise ValueError(f"{field} must be from {least} to {most}, got {value}")
