"""What each measure can tell apart: fewer and fewer plain steps of tiny FLUX at guidance 6, in all measures' eyes.

    python -m benchmarks.regime.measures [--prompts 32] [--guidance 6]

Plain stock pipeline, prompts of the split "train". Each measure is asked for the full run of the same seeds (where it
compares: with itself), for 14 to 2 steps, and for the full run of *other* seeds: just as well drawn, so a measure of
quality must not see it, and one of likeness must. Writes measures.json, measures.md and steps.png. Resumable.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.stats import spearmanr

from benchmarks.regime.drawing import rounded
from benchmarks.regime.options import read
from benchmarks.regime.pictures import PlainRun, Shelf, scene_prompts, sheet
from ralu_cache.models.embedded import TINY_FLUX
from ralu_cache.quality.attributes import attribute_accuracy, probability_of_the_stated, scene_accuracy, shape_accuracy
from ralu_cache.quality.base import Pictures
from ralu_cache.quality.frechet import distance_to_renders
from ralu_cache.quality.intervals import Interval, bootstrap, pictures_needed
from ralu_cache.quality.likeness import psnr, ssim
from ralu_cache.quality.perceptual import distance_to_pictures, perceptual_distance
from ralu_cache.quality.texture import fine_power, mean_gradient, spectral_distance
from ralu_cache.report.table import Table

STEPS = (50, 14, 10, 7, 5, 4, 3, 2)
OTHER = "other seeds"
OTHER_SEED = 5000
OUT = Path("benchmarks/results/regime")
Each = NDArray[np.float64]
Number = TypeVar("Number", float, Each)


@dataclass(frozen=True)
class Measure:
    """One number for each picture. higher: whether more is better; None if 0 is best, less and more alike worse.

    grammar: needs a prompt of the scenes. compares: needs the full run's picture.
    """

    label: str
    unit: str
    higher: bool | None
    grammar: bool
    compares: bool
    of: Callable[[Pictures, Pictures, Sequence[str]], ArrayLike]


@dataclass(frozen=True)
class SetMeasure:
    """One number for a set of pictures, lower is better, from numbers (N, F) of each that can be drawn again."""

    label: str
    grammar: bool
    features: Callable[[Pictures, Sequence[str]], NDArray[np.float32]]
    value: Callable[[NDArray[Any]], float]


def softness(shown: Pictures, full: Pictures, prompts: Sequence[str]) -> list[float]:
    """How much the mean gradient differs from that of the full run's pictures on average, in percent of it."""
    usual = np.mean(mean_gradient(full))
    return [float(100 * (value / usual - 1)) for value in mean_gradient(shown)]


MEASURES: Mapping[str, Measure] = {
    "attributes": Measure("attributes", "%", True, True, False, lambda a, b, p: attribute_accuracy(a, p)),
    "scenes": Measure("scenes wholly right", "%", True, True, False, lambda a, b, p: scene_accuracy(a, p)),
    "probability": Measure(
        "probability of the stated", "%", True, True, False, lambda a, b, p: probability_of_the_stated(a, p)
    ),
    "shapes": Measure("shapes right", "%", True, True, False, lambda a, b, p: shape_accuracy(a, p)),
    "gradient": Measure("mean gradient to the full run's", "%", None, False, False, softness),
    "fine power": Measure("power of fine detail", "dB", None, False, True, lambda a, b, p: fine_power(a, b)),
    "spectrum": Measure("spectral distance", "dB", False, False, True, lambda a, b, p: spectral_distance(a, b)),
    "perceptual": Measure(
        "perceptual distance", "‰", False, False, True, lambda a, b, p: (1000 * np.array(perceptual_distance(a, b)))
    ),
    "ssim": Measure("SSIM", "", True, False, True, lambda a, b, p: ssim(a, b)),
    "psnr": Measure("PSNR", "dB", True, False, True, lambda a, b, p: np.minimum(psnr(a, b), 100)),
}  # fmt: skip
JUDGE = "probability"
"""The measure that the others are held against: smooth, and of what is drawn."""


def runs(guidance: float) -> dict[str, PlainRun]:
    """The full run, the others in falling steps, and the full one of other seeds."""
    plain = {str(steps): PlainRun(TINY_FLUX.name, guidance, steps) for steps in STEPS}
    return plain | {OTHER: PlainRun(TINY_FLUX.name, guidance, max(STEPS), first_seed=OTHER_SEED)}


@dataclass(frozen=True)
class Verdict:
    """What a measure says. means: per run. told: per run, whether it is told from the full run (95 %, paired).

    ordered: share of neighbouring step counts that its means put in the order of the steps. The others are agreement
    with the judge (Spearman, 1 is full): of the means over all runs with a mean, that of other seeds among them; over
    the step counts of one prompt; over the prompts of one step count (within).
    """

    means: dict[str, Interval]
    told: dict[str, bool]
    ordered: float
    of_means: float
    over_steps: float | None = None
    within: float | None = None


def ordered_share(goodness: Sequence[float]) -> float:
    """Share of neighbours, from more to fewer steps, between which it falls."""
    falls = [b < a for a, b in pairwise(goodness)]
    return sum(falls) / len(falls)


def rank_agreement(pairs: Iterable[tuple[Each, Each]]) -> float:
    """Mean of Spearman's correlations of the pairs in which something varies; 0 if nothing does."""
    each = [spearmanr(a, b).statistic for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0]
    return float(np.mean(each)) if each else 0.0


def verdict(measure: Measure, values: Mapping[str, Each], judge: Mapping[str, Each]) -> Verdict:
    """Of a measure whose values (N,) of each run are given, the first the full run's, the last that of other seeds."""
    full, *fewer, _ = values
    start = fewer[0] if measure.compares else full  # with itself a picture is trivially alike
    means = {name: bootstrap(each) for name, each in values.items() if not (measure.compares and name == full)}
    told = {name: bootstrap(values[name] - values[start]).excludes_zero for name in means if name != start}
    goodness = {name: good(measure, one.value) for name, one in means.items()}
    order = [goodness[name] for name in (full, *fewer) if name in means]
    mine, theirs = (np.stack([by_run[name] - by_run[full] for name in fewer]) for by_run in (values, judge))
    if measure.compares:
        mine = np.stack([values[name] for name in fewer])
    mine = good(measure, mine)
    over_steps, within = (rank_agreement(zip(a, b, strict=True)) for a, b in ((mine.T, theirs.T), (mine, theirs)))
    return Verdict(means, told, ordered_share(order), means_agreement(goodness, judge), over_steps, within)


def good(measure: Measure, values: Number) -> Number:
    """Values turned so that more is better."""
    if measure.higher is None:
        return -abs(values)
    return values if measure.higher else -values


def means_agreement(goodness: Mapping[str, float], judge: Mapping[str, Each]) -> float:
    """Spearman's correlation of a measure's means, more is better, with the judge's over the runs that have one."""
    return rank_agreement([(np.array([*goodness.values()]), np.array([judge[name].mean() for name in goodness]))])


def set_verdict(
    measure: SetMeasure, shown: Mapping[str, Pictures], prompts: Sequence[str], judge: Mapping[str, Each]
) -> Verdict:
    """Of a set measure on runs, the first the full one; told: the value lies above the interval of the full run's."""
    features = {name: measure.features(pictures, prompts) for name, pictures in shown.items()}
    means = {name: bootstrap(each, measure.value, draws=200) for name, each in features.items()}
    full = next(iter(means))
    told = {name: interval.value > means[full].high for name, interval in means.items() if name != full}
    goodness = {name: -interval.value for name, interval in means.items()}
    order = [value for name, value in goodness.items() if name != OTHER]
    return Verdict(means, told, ordered_share(order), means_agreement(goodness, judge))


def study(shelf: Shelf, guidance: float, count: int) -> tuple[dict[str, Verdict], dict[str, Pictures], dict[str, int]]:
    """(what each measure says, the pictures, how many pictures tell 1 point of each counting measure apart)."""
    prompts = scene_prompts("train", count)
    shown = {name: shelf.pictures(run, count) for name, run in runs(guidance).items()}
    full = shown[str(max(STEPS))]
    values = {
        name: {run: np.asarray(measure.of(pictures, full, prompts)) for run, pictures in shown.items()}
        for name, measure in MEASURES.items()
    }
    found = {name: verdict(measure, values[name], values[JUDGE]) for name, measure in MEASURES.items()}
    other = distance_to_pictures(shown[OTHER])
    own = distance_to_renders()
    sets = {
        "frechet": SetMeasure("Fréchet, scene classifier", True, own.features, own.value),
        "image frechet": SetMeasure("Fréchet, image network", False, other.features, other.value),
    }
    for name, measure in sets.items():
        compared = {run: each for run, each in shown.items() if measure.grammar or run != OTHER}  # not with themselves
        found[name] = set_verdict(measure, compared, prompts, values[JUDGE])
    points = ("attributes", "scenes", "probability", "shapes")
    needed = {name: pictures_needed(values[name]["10"] - values[name][str(max(STEPS))], 1.0) for name in points}
    return found, shown, needed


LABELS = {name: (f"{each.label}, {each.unit}" if each.unit else each.label) for name, each in MEASURES.items()} | {
    "frechet": "Fréchet, scene classifier, to real renders",
    "image frechet": "Fréchet, image network, to full runs of other seeds",
}
SCENES_ONLY = ("frechet",)


def cell(found: Verdict, run: str) -> str:
    """A mean, in bold where it is told from the full run."""
    if run not in found.means:
        return "–"
    value = found.means[run].value
    text = f"{value:.{3 if abs(value) < 1 else 1}f}"
    return f"**{text}**" if found.told.get(run) else text


def table(verdicts: Mapping[str, Verdict], needed: Mapping[str, int], guidance: float, count: int) -> str:
    """The Markdown page."""
    names = [*(str(steps) for steps in STEPS), OTHER]
    lines = [
        f"# What each measure can tell apart: tiny FLUX, guidance {guidance:g}, {count} prompts",
        "",
        "Plain stock pipeline, 128x128 pixels. Means; bold: told from the full run's (from 14 steps', where a picture",
        "is compared with the full run's) by a paired bootstrap, 95 %; for Fréchet distances: beyond the full run's",
        'interval. "Other seeds": the full run again, as well drawn, with other noise; what is bold there measures',
        "likeness to one seed's picture, not how well it is drawn. In order: share of neighbouring step counts that",
        "get worse. Agreement with the probability of the stated attributes (Spearman): of the means, other seeds",
        "among them; over the 14 to 2 steps of one prompt; over the prompts of one step count, that is whether it sees",
        "which pictures broke. The image network's Fréchet distance is to the full runs of other seeds; the full run's",
        "own is the floor of so few pictures.",
        "Made by `python -m benchmarks.regime.measures`.",
        "",
    ]
    rows = []
    for name, found in verdicts.items():
        grammar = name in SCENES_ONLY or (name in MEASURES and MEASURES[name].grammar)
        cells = [cell(found, run) for run in names] + [f"{found.ordered:.0%}"]
        cells += ["–" if each is None else f"{each:.2f}" for each in (found.of_means, found.over_steps, found.within)]
        rows.append([LABELS[name], "yes" if grammar else "no", *cells])
    titles = ("measure", "grammar", *names, "in order", "means", "over steps", "over prompts")
    lines.append(Table(titles, rows, left=(0, 1)).markdown())
    free = [name for name in verdicts if name not in SCENES_ONLY and not (name in MEASURES and MEASURES[name].grammar)]
    drawn = max(free, key=lambda name: verdicts[name].of_means)
    broken = max(free, key=lambda name: verdicts[name].within or 0)
    wanted = ", ".join(f"{count} for {LABELS[name]}" for name, count in needed.items())
    lines += [
        "",
        f"Of the measures without a grammar, **{LABELS[drawn]}** agrees best with what is drawn ({LABELS[JUDGE]}): "
        f"{verdicts[drawn].of_means:.2f} over the runs; **{LABELS[broken]}** sees best which pictures broke: "
        f"{verdicts[broken].within or 0:.2f}.",
        "",
        f"Pictures that tell one point between 10 steps and the full run from none (95 %, paired): {wanted}.",
    ]
    return "\n".join(lines) + "\n"


def record(verdicts: Mapping[str, Verdict]) -> dict[str, object]:
    """As JSON keeps it."""
    return {
        name: {
            "means": {run: rounded(vars(interval)) for run, interval in found.means.items()},
            "told": found.told,
            **rounded({name: getattr(found, name) for name in ("ordered", "of_means", "over_steps", "within")}),
        }
        for name, found in verdicts.items()
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidance", type=float, default=6.0)
    options = read(parser, arguments, OUT)
    verdicts, shown, needed = study(Shelf(options.shelf), options.guidance, options.prompts)
    setting = {"model": TINY_FLUX.name, "guidance": options.guidance, "prompts": options.prompts, "needed": needed}
    (options.out / "measures.json").write_text(json.dumps(setting | {"measures": record(verdicts)}, indent=1) + "\n")
    page = table(verdicts, needed, options.guidance, options.prompts)
    (options.out / "measures.md").write_text(page)
    Image.fromarray(sheet(shown, 10)).save(options.out / "steps.png", optimize=True)
    print(page)


if __name__ == "__main__":
    main()
