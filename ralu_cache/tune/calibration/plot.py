"""The figure of a calibration: the pairs of each stage and the curve through them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import torch
from matplotlib.figure import Figure

from ralu_cache.report.figures import COLOURS, INK, save
from ralu_cache.temporal.profile import Profile
from ralu_cache.tune.calibration.fit import Pairs


def save_fits(profile: Profile, stages: Sequence[Pairs], path: str | PathLike[str]) -> None:
    """One panel a stage; `stages` are the pairs (P, 2) that the profile's fits were made from."""
    figure = Figure(figsize=(4.2 * len(stages), 3.8), layout="constrained")
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for index, (axis, fit, pairs) in enumerate(zip(axes, profile.stages, stages, strict=True)):
        low, high = fit.range
        x = np.linspace(0.0, 1.15 * high, 200)
        axis.plot(*pairs.T, "o", markersize=3, alpha=0.5, color=COLOURS["fine"], label=f"{len(pairs)} pairs")
        axis.plot(x, fit.curve(torch.from_numpy(x)), color=COLOURS["coarse"], label="fit, held at its ends")
        axis.axvspan(low, high, color=COLOURS["mixed"], alpha=0.08)
        quality = "" if fit.r2 is None else f", R² {fit.r2:.2f}"
        axis.set_title(f"stage {index + 1}: rms {fit.rms:.3g}{quality}", color=INK, fontsize=10)
        axis.set_xlabel("change of the modulated input")
        axis.legend(fontsize=8)
    axes[0].set_ylabel("change of the model's output")
    figure.suptitle(f"{profile.model}, spatial {profile.plan}, {profile.steps} steps", color=INK, fontsize=10)
    save(figure, path)
