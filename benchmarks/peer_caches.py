"""The peers' accelerations of a FLUX pipeline, each through its own stock API, as contexts that leave nothing behind.

FirstBlockCache, MagCache and TaylorSeer are diffusers' own; DBCache, alone and with its TaylorSeer calibrator, is
cache-dit's (pip install cache-dit). Settings not named here are their defaults, except where a default excludes runs
of a model as small as ours; those are said at their place.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)


@contextmanager
def stock_cache(pipe: Any, config: Any) -> Iterator[None]:
    """A cache of diffusers' own on the transformer."""
    pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


@contextmanager
def first_block_cache(pipe: Any, threshold: float) -> Iterator[None]:
    with stock_cache(pipe, FirstBlockCacheConfig(threshold=threshold)):
        yield


@contextmanager
def mag_cache(
    pipe: Any, threshold: float, steps: int, ratios: list[float], skip: int = 3, retention: float = 0.2
) -> Iterator[None]:
    """MagCache with ratios calibrated on this very model (see `calibrate_mag_cache`).

    skip: steps in a row at most. retention: share of the steps in front that are computed in any case.
    """
    config = MagCacheConfig(
        threshold=threshold, max_skip_steps=skip, retention_ratio=retention, num_inference_steps=steps,
        mag_ratios=ratios,
    )  # fmt: skip
    with stock_cache(pipe, config):
        yield


def calibrate_mag_cache(pipe: Any, steps: int, **call: Any) -> list[float]:
    """MagCache's magnitude ratios, by its own calibration mode, which prints them; of the first guidance branch."""
    printed = io.StringIO()
    with redirect_stdout(printed), stock_cache(pipe, MagCacheConfig(calibrate=True, num_inference_steps=steps)):
        pipe(num_inference_steps=steps, output_type="latent", **call)
    lists = [line for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]")]
    return ast.literal_eval(lists[0])


@contextmanager
def taylorseer(pipe: Any, interval: int, lite: bool = False, order: int = 1, warmup: int = 3) -> Iterator[None]:
    """diffusers' TaylorSeer, on every attention by default, on the last block with `lite`; warmup: steps in front.

    Factors in float32: the default bfloat16 would round what this float32 model computes.
    """
    config = TaylorSeerCacheConfig(
        cache_interval=interval, disable_cache_before_step=warmup, max_order=order, taylor_factors_dtype=torch.float32,
        use_lite_mode=lite,
    )  # fmt: skip
    with stock_cache(pipe, config):
        yield


@contextmanager
def pyramid_attention(pipe: Any, interval: int) -> Iterator[None]:
    """diffusers' pyramid attention broadcast: attention computed at every so many steps, between its default levels."""
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=interval, current_timestep_callback=lambda: pipe.current_timestep
    )
    with stock_cache(pipe, config):
        yield


@contextmanager
def faster_cache(pipe: Any, interval: int) -> Iterator[None]:
    """diffusers' FasterCache: attention computed at every so many steps within its default levels, and mixed with the
    one before. The two halves of guidance are calls of their own, or one, so none is made of the other."""
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=interval, tensor_format="BCHW", is_guidance_distilled=True,
        current_timestep_callback=lambda: pipe.current_timestep,
    )  # fmt: skip
    with stock_cache(pipe, config):
        yield


@contextmanager
def dbcache(
    pipe: Any, threshold: float, steps: int, guided: bool, forecast: bool = False, warmup: int = 4,
    mask: str | None = None,
) -> Iterator[None]:  # fmt: skip
    """cache-dit's DBCache with one compute block in front (by default 8, all of our model).

    guided: whether the two halves of guidance are calls of their own. mask: one of its masks of steps by name.
    """
    try:
        import cache_dit
        from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig
    except ImportError as error:
        raise ImportError("DBCache is cache-dit's: pip install --no-deps cache-dit") from error

    config = DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=threshold, max_warmup_steps=warmup,
        num_inference_steps=steps, enable_separate_cfg=guided,
        steps_computation_mask=mask and cache_dit.steps_mask(total_steps=steps, mask_policy=mask),
    )  # fmt: skip
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=1) if forecast else None
    cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)
    try:
        yield
    finally:
        cache_dit.disable_cache(pipe)
