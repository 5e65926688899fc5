"""What the runs of a pipeline's calls are made of, resolved and checked against what its adapter can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

from ralu_cache.adapters.parts import need
from ralu_cache.adapters.protocols import Adapter
from ralu_cache.engine.experts import check_experts, denoisers_of
from ralu_cache.history.solvers import Multistep, resolve_solver
from ralu_cache.plane.guidance import Guidance, resolve_guidance
from ralu_cache.plane.spatial import SpatialMethod, resolve_spatial
from ralu_cache.profiles.facts import Facts
from ralu_cache.temporal import Forecast, Policy, Temporal, resolve_each
from ralu_cache.temporal.coefficients import Calibrated, calibrated
from ralu_cache.temporal.experts import ByExpert, expert_settings

NO_REUSE = Calibrated(None, "none")


@dataclass(frozen=True)
class Parts:
    """Of a call's run; without any the call is stock. plan: the method's name. notices: to be told of such a call.

    low: what a second denoiser, for low noise levels, reuses where that isn't `temporal`. promised: so many times less
    it was said to cost than the call in full.
    """

    method: SpatialMethod | None = None
    plan: str = "none"
    temporal: Calibrated = NO_REUSE
    low: Calibrated | None = None
    guidance: Guidance | None = None
    solver: Multistep | None = None
    notices: tuple[str, ...] = ()
    promised: float | None = None

    @property
    def stock(self) -> bool:
        return not self.reuses and (self.method, self.guidance, self.solver) == (None,) * 3

    @property
    def reuses(self) -> bool:
        return any(each.policy is not None for each in (self.temporal, self.low) if each is not None)

    @property
    def told(self) -> str:
        """How reports call what is reused."""
        return self.temporal.name if self.low is None else f"high={self.temporal.name};low={self.low.name}"

    @property
    def inner(self) -> Policy | None:
        """The policy, where what it reuses is kept inside the model, and not the predictions outside of it."""
        return _inner(self.temporal)

    @property
    def inner_low(self) -> Policy | None:
        """The same of a second denoiser."""
        return self.inner if self.low is None else _inner(self.low)

    @property
    def answers(self) -> bool:
        """True if some calls of the denoiser are answered without running it."""
        policy = self.temporal.policy
        decides = getattr(policy, "tolerance", None) is not None or getattr(policy, "reuse", None) == "prediction"
        return self.guidance is not None or decides

    @property
    def wants_text_attention(self) -> bool:
        """True if regions are chosen by it."""
        return self.method is not None and "text_attention" in self.method.scorer.needs


def _inner(reuse: Calibrated) -> Policy | None:
    outside = isinstance(reuse.policy, Forecast) or getattr(reuse.policy, "reuse", None) == "prediction"
    return None if outside else cast("Policy | None", reuse.policy)


class Planner(Protocol):
    """What chooses the parts of each call anew."""

    @property
    def all(self) -> tuple[Parts, ...]:
        """Those that a call may get, to hook the model for; their inner policies keep the residual of all blocks."""

    def parts(self, call: Facts, coarse: float) -> Parts:
        """Of one call, in which a coarse step costs `coarse` fine ones. Raises ValueError for what can't be had."""


def resolve_parts(
    pipe: Any,
    adapter: Adapter,
    spatial: str | SpatialMethod | None = None,
    temporal: str | Temporal | ByExpert | None = None,
    guidance: str | Guidance | tuple[bool, ...] | None = None,
    solver: str | Multistep | None = None,
) -> Parts:
    """The arguments of `accelerate`, resolved. Raises ValueError or TypeError for what is unknown, or what the family's
    adapter lacks a part for."""
    plan, each = _label(adapter.default_preset if spatial == "ralu" else spatial), expert_settings(temporal)
    check_experts(pipe, spatial, each)
    given = (temporal,) if each is None else tuple(each.values())
    reused = [
        calibrated(policy, _label(spec), transformer, adapter.family, plan)
        for policy, spec, transformer in zip(resolve_each(temporal), given, denoisers_of(pipe), strict=False)
    ]
    integrator, method = resolve_solver(solver), resolve_spatial(spatial, adapter.default_preset)
    guided = resolve_guidance(guidance if guidance is not None else getattr(method, "guidance", None))
    family = type(adapter)
    if method is not None:
        need(family, "tokens", f"spatial={spatial!r}")
        if "text_attention" in method.scorer.needs:
            need(family, "text attention", f"regions={method.scorer.name!r}")
    for policy in (found.policy for found in reused):
        if policy is not None and not isinstance(policy, Forecast):
            need(family, "blocks" if policy.caches == "stack" else "layers", f"temporal={temporal!r}")
    return Parts(method, plan, reused[0], reused[1] if each else None, guided, integrator)


def _label(setting: object) -> str:
    """How a setting is called in reports."""
    return "none" if setting is None else setting if isinstance(setting, str) else repr(setting)
