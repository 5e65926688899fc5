"""Guidance carried out at the denoiser's root: which rows of a call are computed, and what stands in for the others.

Pipelines combine the prediction u without the prompt and c with it as c + (scale - 1) (c - u), or by formulas that
give c where u = c (rescaled, normed, zero-initialised guidance). So a step without guidance is one in which the
pipeline is given c for both: exact, whatever its formula. In the form "stack" both come as one batch, u first; in the
form "calls" the pipeline asks for c, then for u.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ralu_cache.engine.ranked import common
from ralu_cache.engine.run import Run
from ralu_cache.plane.guidance import Guidance


@dataclass
class Known:
    """What one denoiser's calls gave that later ones need.

    step, conditional: the step, and its prediction c (B, ...), as the pipeline got it. flops: of that call, on `rows`
    samples. held: by the sample's number (`Run.number`), the last difference c - u and its level.
    """

    step: int = -1
    conditional: Any = None
    flops: float = 0.0
    rows: int = 0
    held: dict[int, tuple[Tensor, float]] = field(default_factory=dict)

    def prediction(self, step: int) -> Tensor | None:
        """c of this step; None if it was not computed yet."""
        if self.step != step or self.conditional is None:
            return None
        return self.conditional[0] if isinstance(self.conditional, tuple) else self.conditional.sample

    def instead(self, prediction: Tensor) -> Any:
        """A prediction in the form in which the model gave c."""
        return with_prediction(self.conditional, prediction)


def with_prediction(output: Any, prediction: Any) -> Any:
    """A denoiser's output, a tuple or an object, with another prediction in it."""
    return (prediction, *output[1:]) if isinstance(output, tuple) else type(output)(sample=prediction)


@dataclass(frozen=True)
class Pair:
    """One call that is guided for some samples, or otherwise than the pipeline says.

    index: the rows of the call that are computed, None for all. guided: of each sample. factor: u' = c + k (u - c).
    """

    index: Sequence[int] | None
    guided: Sequence[bool]
    factor: float
    stacked: bool


def pair_of(
    run: Run, form: str, call: Mapping[str, Any], batch: int, paired: bool, scale: float, none: float
) -> Pair | None:
    """How a call of `batch` rows is guided; None where it is none of a pair, or is computed as the pipeline says.

    paired: the pipeline guides at all (form "stack"). scale: its own; none: the scale that guides not at all.
    """
    guidance = run.guidance
    assert guidance is not None
    if form == "stack":
        if not paired or call.get("skip_layers") is not None:
            return None
        batch //= 2
    elif not run.calls:
        return None
    guided = run.guided(batch)
    factor = guidance.factor(run.guided_as(run.index), scale, none)
    watches = guidance.agreement is not None or guidance.held is not None
    if all(guided):
        return Pair(None, guided, factor, form == "stack") if factor != 1 or watches else None
    asked = [row for row, wanted in enumerate(guided) if wanted]
    index = [*asked, *range(batch, 2 * batch)] if form == "stack" else asked
    return Pair(index, guided, factor, form == "stack")


def whole(pair: Pair, run: Run, known: Known, prediction: Tensor) -> Tensor:
    """What the pipeline is given: both halves, or u alone, from what was computed of them."""
    count = sum(pair.guided)
    computed, conditional = prediction[:count], prediction[count:] if pair.stacked else known.prediction(run.index)
    assert conditional is not None
    without = unconditional(pair.guided, run, known, conditional, computed, pair.factor)
    return torch.cat([without, conditional]) if pair.stacked else without


def known_answer(run: Run, form: str, known: Known, call: Mapping[str, Any]) -> Tensor | None:
    """u of a call that needs not run, as no sample of it is guided; None for any other."""
    conditional = known.prediction(run.index)
    if conditional is None:
        return None
    if form == "stack":  # a third prediction, of skip-layer guidance, which is guidance too
        half = len(conditional) // 2
        return None if call.get("skip_layers") is None or any(run.guided(half)) else conditional[half:]
    guided = run.guided(len(conditional))
    return None if any(guided) else unconditional(guided, run, known, conditional)


def unconditional(
    guided: Sequence[bool],
    run: Run,
    known: Known,
    conditional: Tensor,
    computed: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """u of all samples (B, ...): what was `computed` for the guided ones, and for the others c or what was held."""
    guidance, found, rows = run.guidance, [], iter(() if computed is None else computed)
    assert guidance is not None
    agreed = []
    for sample, wanted in enumerate(guided):
        c = conditional[sample]
        if not wanted:
            found.append(_held(guidance, run, known, sample, c))
            continue
        u = next(rows)
        if guidance.held is not None:
            known.held[run.number(sample)] = c - u, run.sigma
        if guidance.agreement is not None and _agreement(u, c) >= guidance.agreement:
            agreed.append(sample)
        found.append(u if factor == 1 else c + factor * (u - c))
    run.agreed(agreed)
    return torch.stack(found)


def _held(guidance: Guidance, run: Run, known: Known, sample: int, c: Tensor) -> Tensor:
    if guidance.held is None or (held := known.held.get(run.number(sample))) is None:
        return c
    difference, sigma = held
    return c - (run.sigma / sigma) * difference


def _agreement(u: Tensor, c: Tensor) -> float:
    """Cosine of two predictions, in float32; -1 where it isn't finite, so that guidance goes on."""
    cosine = torch.nn.functional.cosine_similarity(u.float().flatten(), c.float().flatten(), dim=0)
    return float(common(cosine.nan_to_num(-1.0)))
