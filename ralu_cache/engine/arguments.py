"""What the arguments of a pipeline's call mean for its run: scales, shares of the schedule, sizes."""

from __future__ import annotations

from typing import Any

from ralu_cache.adapters.protocols import Cost
from ralu_cache.engine.call import Call
from ralu_cache.plane.budget import UNKNOWN
from ralu_cache.profiles.facts import Facts


def guidance_scale(call: Call, denoiser: Any) -> float:
    """The scale that the pipeline's own formula has for this denoiser."""
    given = call.given
    if given.get("true_cfg_scale") is not None:
        return float(given["true_cfg_scale"])
    if (guider := getattr(call.pipe, "guider", None)) is not None:
        return float(getattr(guider, "guidance_scale", 1.0))
    second = denoiser is getattr(call.pipe, "transformer_2", None) and given.get("guidance_scale_2") is not None
    return float(given["guidance_scale_2"] if second else given.get("guidance_scale") or 1.0)


def control_scale(call: Call, number: int) -> dict[str, Any]:
    """The conditioning scale of a ControlNet, on and off at the noise levels that the caller's shares mean."""
    run, given = call.run, call.given
    scale = _of_net(given.get("controlnet_conditioning_scale"), number)
    if run is None or scale is None:
        return {}
    start = _of_net(given.get("control_guidance_start", 0.0), number)
    end = _of_net(given.get("control_guidance_end", 1.0), number)
    step, steps = run.stock_step, run.stock.steps
    inside = step / steps >= start and (step + 1) / steps <= end
    return {"conditioning_scale": scale * float(inside)}


OTHER_TEXT = 77
"""Tokens of CLIP's, which the pipelines that have them tell as `tokenizer_max_length`."""


def coarse_cost_of(call: Call, facts: Facts, costs: Cost, pixels: int) -> float:
    """At most what a coarse step of the call costs in fine ones. pixels: of the image, per token side."""
    if facts.height is None or facts.width is None:
        return UNKNOWN
    given = call.given.get("prompt_embeds")
    words = int(call.given.get("max_sequence_length") or 512) if given is None else given.shape[1]
    others = getattr(call.pipe, "tokenizer_max_length", None) or OTHER_TEXT
    return costs.coarse_share(facts.height * facts.width // pixels**2, words, others)


def _of_net(value: Any, number: int) -> Any:
    """What a ControlNet of several has of an argument that may be one for all."""
    return value[number] if isinstance(value, list | tuple) else value
