"""Which metrics can judge pictures of these prompts on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ralu_cache.quality.attributes import SCENE_METRICS
from ralu_cache.quality.base import Metric, SetMetric
from ralu_cache.quality.frechet import distance_to_renders
from ralu_cache.quality.likeness import LIKENESS
from ralu_cache.quality.perceptual import load_perceptual
from ralu_cache.quality.pretrained import MissingError, load_clip, load_image_reward, load_lpips
from ralu_cache.quality.scene_prompts import read_prompt
from ralu_cache.quality.texture import SPECTRUM

_PRETRAINED: Mapping[str, Callable[[str], Metric]] = {
    "perceptual distance": load_perceptual,
    "CLIP score": load_clip,
    "ImageReward": load_image_reward,
    "LPIPS": load_lpips,
}


def metrics_for(prompts: Iterable[str]) -> tuple[list[Metric], list[SetMetric], list[str]]:
    """(metrics, set metrics, notices of what was left out and why).

    PSNR, SSIM, MS-SSIM and spectral distance always; what attributes are shown and the Fréchet distance if every prompt
    is one of the embedded model's scenes; perceptual distance, CLIP score, ImageReward and LPIPS if their packages and
    weights are on this machine: nothing is downloaded. All run on the CPU.
    """
    metrics: list[Metric] = [*LIKENESS, SPECTRUM]
    sets: list[SetMetric] = []
    notices = []
    try:
        for prompt in prompts:
            read_prompt(prompt)
    except ValueError:
        notices.append(f"attribute accuracy and Fréchet distance are left out: {prompt!r} is not a tiny-flux scene")
    else:
        metrics += SCENE_METRICS
        sets.append(distance_to_renders())
    for label, load in _PRETRAINED.items():
        try:
            metrics.append(load("cpu"))
        except MissingError as error:
            notices.append(f"{label} is left out: {error}")
    return metrics, sets, notices
