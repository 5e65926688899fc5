"""What a model's output means at a noise level, whatever it predicts: the clean estimate, and back.

A sample is x = alpha x0 + sigma n. Schedulers of one family keep alpha + sigma = 1 (flow), of another alpha^2 + sigma^2
= 1, or alpha = 1 (k-diffusion); the outputs are those of arXiv 2006.11239 (epsilon), 2202.00512 (v), 2206.00364 (EDM)
and 2210.02747 (flow). Pure arithmetic on tensors of any shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

KINDS = (
    "flow_prediction", "data_velocity", "epsilon", "v_prediction", "sample", "edm_epsilon", "edm_v_prediction",
)  # fmt: skip
"""What models predict: n - x0, x0 - n, n, v of unit variance, x0, and what EDM's preconditioning is for."""


@dataclass(frozen=True)
class Place:
    """A noise level: the sample there is `alpha * clean + sigma * noise`."""

    alpha: float
    sigma: float

    @property
    def share(self) -> float:
        """sigma / (alpha + sigma): the flow level with as much noise for its signal, 1 noise to 0 clean."""
        return self.sigma / (self.alpha + self.sigma)


def clean_of(kind: str, place: Place, sample: Tensor, output: Tensor, data_scale: float = 1.0) -> Tensor:
    """The clean estimate that a model's `output` for a `sample` means. data_scale: EDM's standard deviation of data."""
    if kind == "sample":
        return output
    keep, weight = _affine(kind, place, data_scale)
    return keep * sample + weight * output


def output_of(kind: str, place: Place, sample: Tensor, clean: Tensor, data_scale: float = 1.0) -> Tensor:
    """The output that a `clean` estimate means for a `sample`; the inverse of `clean_of`, for sigma above 0."""
    if kind == "sample":
        return clean
    keep, weight = _affine(kind, place, data_scale)
    return (clean - keep * sample) / weight


def _affine(kind: str, place: Place, data_scale: float) -> tuple[float, float]:
    """(k, w) of `clean = k sample + w output`. Raises ValueError for an unknown kind."""
    alpha, sigma = place.alpha, place.sigma
    norm = alpha**2 + sigma**2
    if kind == "flow_prediction":  # x - sigma (n - x0) = x0 wherever alpha + sigma = 1
        return 1.0, -sigma
    if kind == "data_velocity":
        return 1.0, sigma
    if kind == "epsilon":
        return 1 / alpha, -sigma / alpha
    if kind == "v_prediction":  # of the sample scaled to unit variance
        return alpha / norm, -sigma / norm**0.5
    if kind in ("edm_epsilon", "edm_v_prediction"):
        sign = 1 if kind == "edm_epsilon" else -1
        total = sigma**2 + data_scale**2
        return data_scale**2 / total, sign * sigma * data_scale / total**0.5
    raise ValueError(f"unknown kind of prediction {kind!r}; known: {', '.join(KINDS)}")
