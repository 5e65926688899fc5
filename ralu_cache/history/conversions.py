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
    """A noise level: the sample there is `alpha * clean + sigma * noise`, sigma above 0."""

    alpha: float
    sigma: float

    @property
    def share(self) -> float:
        """sigma / (alpha + sigma): the flow level with as much noise for its signal, 1 noise to 0 clean."""
        return self.sigma / (self.alpha + self.sigma)


@dataclass(frozen=True)
class Reading:
    """How a model's outputs are read. kind: one of `KINDS`. data_scale: EDM's standard deviation of data.

    quantity: what stands for them in a history: the "clean" estimate; the "velocity" n - x0, which is as well scaled
    at all levels whatever the model predicts; or the "output" as it is.
    """

    kind: str
    quantity: str
    data_scale: float = 1.0

    def value(self, place: Place, sample: Tensor, output: Tensor) -> Tensor:
        """The quantity that an `output` for a `sample` means."""
        if self.quantity == "output" or (self.quantity, self.kind) == ("velocity", "flow_prediction"):
            return output
        keep, weight = affine(self.kind, place, self.data_scale)
        clean = keep * sample + weight * output if keep else weight * output
        if self.quantity == "clean":
            return clean
        return (sample - (place.alpha + place.sigma) * clean) / place.sigma

    def output(self, place: Place, sample: Tensor, value: Tensor) -> Tensor:
        """The output that a quantity's `value` means for a `sample`: the inverse of `value`."""
        if self.quantity == "output" or (self.quantity, self.kind) == ("velocity", "flow_prediction"):
            return value
        clean = value if self.quantity == "clean" else (sample - place.sigma * value) / (place.alpha + place.sigma)
        keep, weight = affine(self.kind, place, self.data_scale)
        return (clean - keep * sample) / weight if keep else clean / weight


def affine(kind: str, place: Place, data_scale: float = 1.0) -> tuple[float, float]:
    """(k, w) of `clean = k sample + w output`. Raises ValueError for an unknown kind."""
    alpha, sigma = place.alpha, place.sigma
    norm = alpha**2 + sigma**2
    if kind == "sample":
        return 0.0, 1.0
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
