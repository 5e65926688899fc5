"""What the demonstration runs: of each embedded model its prompts, its methods, and how many steps and rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ralu_cache.models.embedded import TINY_FLUX, TINY_SD3, TINY_WAN, EmbeddedModel
from ralu_cache.sweep.methods import Method, parse_method


@dataclass(frozen=True)
class DemoPlan:
    """What the demo runs: each method on all prompts as one batch, for every seed, `repeats` times in turn.

    methods: as `methods.parse_method` reads them; of a cached one the uncached plan is run too. size: pixels of a
    side. steps: those of the full run that all is compared with. guidance: in place of the model's own arguments.
    scheduler: "unipc", the one that Wan was released with, in place of the model's own.
    """

    model: EmbeddedModel
    prompts: tuple[str, ...]
    methods: tuple[str, ...]
    size: int
    steps: int = 50
    seeds: tuple[int, ...] = (0,)
    repeats: int = 3
    device: str = "cpu"
    guidance: Mapping[str, float] = field(default_factory=dict)
    scheduler: str | None = None

    @property
    def name(self) -> str:
        """Of its folder, and for the command line."""
        return self.model.name if self.scheduler is None else f"{self.model.name}-{self.scheduler}"

    def load(self) -> Any:
        """The pipeline, on its device, with its scheduler."""
        from diffusers import UniPCMultistepScheduler

        pipe = self.model.load().to(self.device)
        if self.scheduler is not None:
            pipe.scheduler = UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=pipe.scheduler.config.shift
            )
        return pipe

    @property
    def arguments(self) -> dict[str, Any]:
        """What every call is given, beside prompts, steps, sizes and seeds."""
        return {**self.model.arguments, **self.guidance}

    def __post_init__(self) -> None:
        for name in ("size", "steps", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.scheduler not in (None, "unipc"):
            raise ValueError(f"scheduler must be None or 'unipc', got {self.scheduler!r}")
        for name in ("prompts", "methods", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be one or more, all different; got {values}")
        parsed = [parse_method(name) for name in self.methods]
        if len(set(parsed)) < len(parsed) or Method() in parsed:
            raise ValueError(f"methods must be accelerations, all different; got {self.methods}")


STACKED = "ralu-8x+forecast:1/2,quantity=clean+guidance=early"
"""All three axes where they go together under strong guidance: fine steps are not guided, every second one forecast."""
DEMO = DemoPlan(
    model=TINY_FLUX,
    prompts=(
        "a red circle on a blue and white horizontal striped background",
        "a green triangle on the left on a yellow and orange checkered background",
        "a yellow cross on a purple and black dotted background",
        "a large white ring on a red background",
        "a pink square in the center on a cyan to white gradient background",
        "a blue square and an orange triangle on a white background",
    ),
    methods=("ralu", "ralu-12x", "ralu-15x", "ralu-18x", "+seacache:0.2", STACKED),
    size=128,
    guidance={"true_cfg_scale": 6.0},  # where few plain steps break pictures
)
_WAN = DemoPlan(
    model=TINY_WAN,
    prompts=(
        "a blue square shrinking on a yellow background",
        "a yellow square moving down on a purple background",
        "a purple triangle growing on a cyan background",
        "a white circle moving up on an orange and red horizontal striped background",
    ),
    methods=("ralu", "ralu-12x", "+seacache:0.2", "+forecast:3", "ralu-4x+seacache:0.4"),
    size=TINY_WAN.size,
    repeats=2,
)
DEMOS = (
    DEMO,
    replace(DEMO, model=TINY_SD3, guidance={"guidance_scale": 6.0}),
    _WAN,
    replace(_WAN, methods=("ralu", "ralu-12x", "+seacache:0.2", "ralu-4x+seacache:0.4"), repeats=1, scheduler="unipc"),
)


def demo_prompts(model: str) -> tuple[str, ...]:
    """The prompts of an embedded model's demo; of any other model those of the first."""
    return next((plan.prompts for plan in DEMOS if plan.model.name == model), DEMO.prompts)


def quick(plan: DemoPlan) -> DemoPlan:
    """Two prompts, one round; of the methods the first plan, the first caching alone, the first of both."""
    alone = next(method for method in plan.methods if method.startswith("+"))
    both = next(method for method in plan.methods if "+" in method[1:])
    return replace(plan, prompts=plan.prompts[:2], methods=(plan.methods[0], alone, both), repeats=1)
