"""Region scorers: which coarse tokens a staged run refines first.

The paper (RALU, arXiv 2507.08422) takes Canny edges of the decoded clean estimate; others found that latent statistics
or even spacing serve as well, so a scorer is a plain function that can be registered and compared. It maps `Evidence`
to scores (B, Y, X), float32, one per coarse token; higher is refined first, and a sample's scores depend on that
sample alone.

Latents are (B, C, H, W); a token covers patch x patch latent pixels, a coarse token 2 patch x 2 patch, hence
Y = H / (2 patch) and X = W / (2 patch). Sigma 1 is noise, sigma 0 clean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEEDS = frozenset({"decode", "history", "text_attention"})
CANNY_THRESHOLDS = (100, 200)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what OpenCV's RGB2GRAY uses
R2 = (0.7548776662466927, 0.5698402909980532)  # 1/g and 1/g^2 of the plastic number g, the root of g^3 = g + 1


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known at the end of a stage.

    x0: (B, C, H, W), the clean estimate on the full canvas; a coarse token is 2x2 equal latent pixels.
    velocity: (B, C, H, W), noise - x0 as last predicted.
    history: the x0 of the stage's last steps, oldest first, the current one included.
    patch: latent pixels per token side.
    decode: latents (F, C, h, w) of one sample, of any even size, to images (F, 3, h', w') in [-1, 1]; None where there
        is no decoder.
    text_attention: (B, Y, X), share of each coarse token's attention that falls on the text; None if not recorded.
    frames: F consecutive entries of the batch are the frames of one video; 1 for images.

    Raises ValueError for shapes that do not fit together.
    """

    x0: Tensor
    velocity: Tensor
    history: tuple[Tensor, ...]
    patch: int
    decode: Callable[[Tensor], Tensor] | None = None
    text_attention: Tensor | None = None
    frames: int = 1

    def __post_init__(self) -> None:
        shape = tuple(self.x0.shape)
        side = 2 * self.patch
        if len(shape) != 4 or side < 2 or shape[2] % side or shape[3] % side:
            raise ValueError(f"x0 must be (B, C, H, W) with H and W divisible by 2 * patch = {side}, got {shape}")
        if self.frames < 1 or shape[0] % self.frames:
            raise ValueError(f"{shape[0]} entries of a batch are not whole videos of {self.frames} frames")
        for name, latents in [("velocity", self.velocity), *((f"history[{k}]", x) for k, x in enumerate(self.history))]:
            if tuple(latents.shape) != shape:
                raise ValueError(f"{name} must have the shape of x0, {shape}, got {tuple(latents.shape)}")
        expected = (shape[0], *self.cells)
        if self.text_attention is not None and tuple(self.text_attention.shape) != expected:
            raise ValueError(f"text_attention must be (B, Y, X) = {expected}, got {tuple(self.text_attention.shape)}")

    @property
    def cells(self) -> tuple[int, int]:
        """(Y, X): coarse tokens along the height and the width."""
        return self.x0.shape[2] // (2 * self.patch), self.x0.shape[3] // (2 * self.patch)


@dataclass(frozen=True)
class Scorer:
    """A named scorer. `needs` tells the caller which optional evidence to gather: a subset of
    {"decode", "history", "text_attention"}; "history" means at least two steps.

    Raises ValueError for an empty name or an unknown need.
    """

    name: str
    score: Callable[[Evidence], Tensor]
    needs: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a scorer needs a name, got ''")
        if unknown := sorted(set(self.needs) - NEEDS):
            raise ValueError(f"scorer {self.name!r} needs {unknown}; accepted: {', '.join(sorted(NEEDS))}")


def canny(evidence: Evidence) -> Tensor:
    """Edge pixels per coarse token: Canny(100, 200) on the 8-bit grey decoded estimate (arXiv 2507.08422).

    The decoder's [-1, 1] is mapped to [0, 1] by x/2 + 1/2. The published code clips it to [0, 1] instead, which turns
    every value below mid-grey black and loses the edges of dark regions.

    Raises ImportError without OpenCV, ValueError without a decoder.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "the region scorer 'canny' needs OpenCV: pip install 'ralu_cache[canny]', or choose 'sobel'"
        ) from error
    edges = []
    for image in _decoded("canny", evidence):
        levels = (image.nan_to_num() / 2 + 0.5).clamp(0, 1) * 255
        pixels = levels.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        edges.append(torch.from_numpy(cv2.Canny(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), *CANNY_THRESHOLDS) > 0))
    per_pixel = torch.stack(edges).float()
    area = per_pixel[0].numel() / (evidence.cells[0] * evidence.cells[1])
    return (_per_cell(per_pixel, evidence.cells) * area).to(evidence.x0.device)


def sobel(evidence: Evidence) -> Tensor:
    """Mean Sobel gradient of the grey decoded estimate: edges as `canny` sees them, without thresholds or OpenCV.

    Raises ValueError without a decoder.
    """
    images = torch.stack(_decoded("sobel", evidence))
    grey = sum(weight * images[:, k] for k, weight in enumerate(LUMA))
    assert isinstance(grey, Tensor)
    return _per_cell(_gradient(grey[:, None]), evidence.cells)


def latent_gradient(evidence: Evidence) -> Tensor:
    """Mean Sobel gradient of the pooled estimate, over all latent channels; needs no decoder, so suits offload."""
    return _per_cell(_gradient(F.avg_pool2d(evidence.x0.float(), 2)), evidence.cells)


def step_variance(evidence: Evidence) -> Tensor:
    """Converged first: minus the variance of x0 over the last steps (Fresco, arXiv 2601.07462).

    Raises ValueError with fewer than two steps of history.
    """
    return 0 - _variance_over_steps("step-variance", evidence)


def step_variance_moving(evidence: Evidence) -> Tensor:
    """Still moving first: the variance of x0 over the last steps (AViTS), the other sign of `step_variance`.

    Raises ValueError with fewer than two steps of history.
    """
    return _variance_over_steps("step-variance-moving", evidence)


def velocity_variance(evidence: Evidence) -> Tensor:
    """Local variance of the velocity (JiT, arXiv 2603.10744), in 3x3 windows of the pooled velocity."""
    velocity = F.avg_pool2d(evidence.velocity.float(), 2)
    b, c, h, w = velocity.shape
    windows = F.unfold(F.pad(velocity, (1, 1, 1, 1), mode="replicate"), 3).view(b, c, 9, h, w)
    return _per_cell((windows - velocity[:, :, None]).var(2, correction=0).mean(1), evidence.cells)


def text_attention(evidence: Evidence) -> Tensor:
    """Share of each token's attention that falls on the text (AViTS). Raises ValueError if it was not recorded."""
    if evidence.text_attention is None:
        raise ValueError("the region scorer 'text-attention' needs recorded text attention, got None")
    return evidence.text_attention.float()


def even(evidence: Evidence) -> Tensor:
    """Evenly spaced at any ratio: the R2 low-discrepancy mask frac(x / g + y / g^2), with g the plastic number.

    The same for all samples, and nested: a higher ratio only adds tokens.
    """
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in evidence.cells)
    mask = (R2[0] * columns + R2[1] * rows[:, None]) % 1
    return mask.to(evidence.x0.device, torch.float32).expand(len(evidence.x0), -1, -1).clone()


def refined_count(ratio: float, cells: int) -> int:
    """How many of a picture's or frame's coarse tokens a ratio refines."""
    return max(1, round(ratio * cells))


def select_top(scores: Tensor, ratio: float, already: Tensor | None = None) -> Tensor:
    """The coarse tokens to refine: per sample the max(1, round(ratio Y X)) with the highest scores.

    scores: (B, Y, X); of equal scores the lower raster index wins, NaN and +-inf count as lowest. ratio: share of
    tokens, within (0, 1]; 1 selects all. already: (B, Y, X) bool, tokens that are selected whatever their score, and
    counted. Returns (B, Y, X) bool. Raises ValueError for a ratio outside (0, 1], shapes that differ, or more tokens in
    `already` than the ratio allows.
    """
    if scores.ndim != 3:
        raise ValueError(f"scores must be (B, Y, X), got {tuple(scores.shape)}")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie within (0, 1], got {ratio}")
    flat = scores.flatten(1).float() + 0.0  # -0.0 becomes 0.0: some sorts tell them apart
    count = refined_count(ratio, flat.shape[1])
    lowest = torch.full_like(flat, -torch.inf)
    flat = torch.where(flat.isfinite(), flat, lowest)
    if already is not None:
        if already.shape != scores.shape or already.dtype != torch.bool:
            raise ValueError(
                f"already must be bool of shape {tuple(scores.shape)}, got {tuple(already.shape)} {already.dtype}"
            )
        if (most := int(already.flatten(1).sum(1).max())) > count:
            raise ValueError(f"{most} tokens are selected already, more than the {count} of ratio {ratio}")
        flat = torch.where(already.flatten(1), -lowest, flat)
    best = flat.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, best, True).view(scores.shape)


def share_over_time(scores: Tensor, frames: int) -> Tensor:
    """(B F, Y, X) -> the same shape, every frame with the mean of its video's scores."""
    videos = scores.unflatten(0, (-1, frames))
    return videos.mean(1, keepdim=True).expand_as(videos).flatten(0, 1)


def register_scorer(scorer: Scorer) -> None:
    """Make `scorer` available by its name. Raises ValueError if the name is taken."""
    if scorer.name in _SCORERS:
        raise ValueError(f"region scorer {scorer.name!r} is registered already")
    _SCORERS[scorer.name] = scorer


def get_scorer(name: str) -> Scorer:
    """The scorer registered as `name`. Raises ValueError, with the registered names, for any other."""
    if name not in _SCORERS:
        raise ValueError(f"unknown region scorer {name!r}; accepted: {', '.join(scorer_names())}")
    return _SCORERS[name]


def scorer_names() -> tuple[str, ...]:
    """The registered names, ours first."""
    return tuple(_SCORERS)


def _decoded(name: str, evidence: Evidence) -> list[Tensor]:
    """One image (3, h, w) in [-1, 1] per entry, samples decoded one by one so that none depends on its batch.

    The pooled latent is decoded, as in the paper: before the mixed stage it holds all there is, at a quarter of the
    cost. An odd pooled size, which a decoder may refuse, is decoded from the full canvas.
    """
    if evidence.decode is None:
        raise ValueError(f"the region scorer {name!r} needs a decoder, got decode=None; 'latent-gradient' needs none")
    latents = F.avg_pool2d(evidence.x0, 2)
    if latents.shape[2] % 2 or latents.shape[3] % 2:
        latents = evidence.x0
    return [image.float() for sample in latents.split(evidence.frames) for image in evidence.decode(sample)]


def _gradient(image: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w): magnitude of the Sobel gradient over all channels, image borders replicated."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    smooth_y = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    smooth_x = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    dx = (smooth_y[..., 2:] - smooth_y[..., :-2]) / 8
    dy = (smooth_x[:, :, 2:] - smooth_x[:, :, :-2]) / 8
    return (dx**2 + dy**2).sum(1).sqrt()


def _variance_over_steps(name: str, evidence: Evidence) -> Tensor:
    """(B, Y, X): variance over the history, averaged over channels and pixels of each coarse token."""
    if len(evidence.history) < 2:
        raise ValueError(
            f"the region scorer {name!r} needs the clean estimates of at least 2 steps, got {len(evidence.history)}: "
            "give the stage before the refinement more steps, or choose 'latent-gradient'"
        )
    steps = torch.stack([x.float() - evidence.x0.float() for x in evidence.history])
    return _per_cell(steps.var(0, correction=0).mean(1), evidence.cells)


def _per_cell(image: Tensor, cells: tuple[int, int]) -> Tensor:
    """Mean over each coarse token: (B, h, w) -> (B, Y, X), for h and w multiples of Y and X."""
    (h, w), (rows, columns) = image.shape[1:], cells
    if h % rows or w % columns:
        raise ValueError(f"an image of {h} x {w} pixels does not divide into {rows} x {columns} coarse tokens")
    return F.avg_pool2d(image[:, None], (h // rows, w // columns))[:, 0]


_SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        Scorer("canny", canny, frozenset({"decode"})),
        Scorer("sobel", sobel, frozenset({"decode"})),
        Scorer("latent-gradient", latent_gradient),
        Scorer("step-variance", step_variance, frozenset({"history"})),
        Scorer("step-variance-moving", step_variance_moving, frozenset({"history"})),
        Scorer("velocity-variance", velocity_variance),
        Scorer("text-attention", text_attention, frozenset({"text_attention"})),
        Scorer("even", even),
    )
}
