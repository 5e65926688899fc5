"""The tables and strips of the regime's study: means, paired differences to the full run, bootstrap intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.regime.costs import read as read_costs
from benchmarks.regime.measures import LABELS
from benchmarks.regime.pictures import scene_prompts, shrink
from benchmarks.regime.settings import FULL, REGIMES, settings
from benchmarks.regime.study import COUNT, Row, Study, latest
from ralu_cache.quality.frechet import distance_to_renders
from ralu_cache.quality.intervals import Interval, bootstrap
from ralu_cache.report.figures import save_grid
from ralu_cache.report.table import Table

DRAWN = ("attributes", "scenes", "probability", "shapes")
LOOKS = ("sharpness", "spectrum", "perceptual")
LIKENESS = ("psnr", "ssim", "psnr_150", "ssim_150")
NAMES = LABELS | {
    "sharpness": "mean gradient, ‰", "psnr_150": "PSNR to 150 steps, dB", "ssim_150": "SSIM to 150 steps",
}  # fmt: skip
DIGITS = {"ssim": 3, "ssim_150": 3, "spectrum": 2}
ALL = 1 << 20  # pictures: all that some settings were drawn more of than the main tables count
DRAWS = 200  # resamplings of a Fréchet distance
COLUMNS = 8  # pictures of a strip
TITLES = {"strong": "strong guidance, the same for all", "best": "each at the guidance that serves it best"}
Parts = Mapping[int, Row]


@dataclass(frozen=True)
class Compared:
    """A setting beside the full run of its regime, on the pictures that both have. within: only the first so many."""

    name: str
    parts: Parts
    full: Parts
    within: int = COUNT

    @property
    def starts(self) -> list[int]:
        return [start for start in sorted(set(self.parts) & set(self.full)) if start < self.within]

    def values(self, measure: str, parts: Parts | None = None) -> NDArray[np.float64]:
        """(N,): of the setting, or of other parts, on the pictures that have this measure; none if none has it."""
        rows = [(parts or self.parts)[start] for start in self.starts]
        return np.concatenate([np.empty(0), *(row[measure] for row in rows if measure in row)])

    @property
    def count(self) -> int:
        return len(self.values("attributes"))

    @property
    def ratio(self) -> float:
        return float(np.mean([self.parts[start]["ratio"] for start in self.starts]))

    def faster(self, clock: str = "seconds") -> float:
        """Median over all batches of the full run's time over the setting's; nan if never drawn in one session."""
        pairs = [(self.full[start], self.parts[start]) for start in set(self.parts) & set(self.full)]
        ratios = [full[clock] / mine[clock] for full, mine in pairs if full.get("session") == mine.get("session")]
        return float(np.median(ratios)) if ratios else float("nan")

    def difference(self, measure: str) -> Interval:
        """Of the setting to the full run, paired."""
        return bootstrap(self.values(measure) - self.values(measure, self.full))


def times(ratio: float) -> str:
    """How many times as fast; nothing where the full run was not timed beside it."""
    return "" if math.isnan(ratio) else f"{ratio:.1f}x"


def shown(value: Interval, digits: int = 1, sign: str = "") -> str:
    return f"{value.value:{sign}.{digits}f} ({value.low:{sign}.{digits}f} to {value.high:{sign}.{digits}f})"


def frechet(study: Study, regime: str, one: Compared) -> Interval:
    """Of the scene classifier's features of the kept pictures to those of real renders."""
    metric = distance_to_renders()
    pictures = np.concatenate([study.pictures(regime, one.name, start) for start in one.starts])
    return bootstrap(metric.features(pictures, ()), metric.value, draws=DRAWS)


def remembered(studies: Sequence[Study]) -> dict[str, Interval]:
    """Fréchet distances by "model/regime/setting/pictures": those written down, and those that kept pictures give."""
    known = {name: Interval(*each) for name, each in studies[0].distances().items()}
    found = {}
    for study in studies:
        for regime in REGIMES:
            for one in compared(study, regime):
                key = f"{study.model}/{regime}/{one.name}/{one.count}"
                if key in known:
                    found[key] = known[key]
                elif all(study.kept(regime, one.name, start).exists() for start in one.starts):
                    found[key] = frechet(study, regime, one)
    numbers = {key: [round(each, 2) for each in (value.value, value.low, value.high)] for key, value in found.items()}
    studies[0].record.write_text(json.dumps(numbers, indent=0) + "\n")
    return found


def compared(study: Study, regime: str, within: int = COUNT) -> list[Compared]:
    """All settings of a regime that have some of the first pictures, in their order, on these."""
    found = latest(study.rows(), study.model).get(regime, {})
    every = [Compared(name, parts, found[FULL], within) for name, parts in found.items() if FULL in found]
    return [one for one in every if one.starts]


def drawn_table(rows: Sequence[Compared]) -> str:
    """What is drawn at what cost."""
    titles = ["setting", "guidance", "pictures", "fewer FLOPs", "faster", "by processor time"]
    words = [0]
    for measure in DRAWN:
        titles += [NAMES[measure], "to the full run"]
        words.append(len(titles) - 1)
    lines = []
    for one in rows:
        first = one.parts[one.starts[0]]
        cells = [one.name, f"{first['scale']:g}", str(one.count), f"{one.ratio:.1f}x"]
        cells += [times(one.faster(clock)) for clock in ("seconds", "processor")]
        for measure in DRAWN:
            cells.append(f"{one.values(measure).mean():.1f}")
            cells.append("" if one.name == FULL else shown(one.difference(measure), 1, "+"))
        lines.append(cells)
    return Table(titles, lines, words).markdown()


def looks_table(rows: Sequence[Compared], distances: Mapping[str, Interval], where: str) -> str:
    """How it looks, and how like the full run's picture of the same seed it is."""
    names = [measure for measure in (*LOOKS, *LIKENESS) if any(len(one.values(measure)) for one in rows)]
    likeness = [NAMES[name] for name in names[1:]]
    titles = ("setting", "Fréchet distance", "mean gradient, ‰", "to the full run", *likeness)
    lines = []
    for one in rows:
        distance = distances.get(f"{where}/{one.name}/{one.count}")
        cells = [one.name, "" if distance is None else shown(distance), f"{one.values('sharpness').mean():.1f}"]
        cells.append("" if one.name == FULL else shown(one.difference("sharpness"), 1, "+"))
        for measure in names[1:]:
            values = one.values(measure)
            known = len(values) > 1 and one.name != FULL
            cells.append(shown(bootstrap(values), DIGITS.get(measure, 1)) if known else "")
        lines.append(cells)
    return Table(titles, lines, left=(0, 3)).markdown()


def costs_table(study: Study, rows: Sequence[Compared]) -> list[str]:
    """What `benchmarks.regime.costs` found of the settings; none if it was not run."""
    costs = read_costs(study.out)
    known = {one.name: costs.get(f"{study.model}/{one.parts[one.starts[0]]['made']}") for one in rows}
    full = known.get(FULL)
    if full is None:
        return []
    computed = "flux" in full
    titles = ["setting", "fewer FLOPs", "faster", "model calls a picture", "held"]
    titles += ["FLUX.1-dev at 1024x1024, computed"] * computed
    lines = []
    for one in rows:
        if (cost := known[one.name]) is None:
            continue
        cells = [one.name, f"{one.ratio:.1f}x", times(one.faster()), str(cost["samples"])]
        cells.append(f"{max(0, cost['held'] - full['held']) / 1024:.0f} KiB")
        if computed:
            cells.append(f"{max(0, cost['flux'] - full['flux']) / 1024**2:.0f} MiB")
        lines.append(cells)
    return ["", "What it costs:", "", Table(titles, lines).markdown()]


def page(studies: Sequence[Study], distances: Mapping[str, Interval]) -> str:
    """The Markdown page."""
    lines = [
        "# Where few steps break pictures: what is drawn at what cost",
        "",
        "Prompts and seeds of this study alone, 128x128 pixels; what the methods' shifts, intervals and scales were",
        "chosen on is in [search.md](search.md). In brackets 95 % bootstrap intervals over pictures, of differences",
        "paired ones. Attributes and the like are in the eyes of a classifier of what the prompt states. FLOPs against",
        "50 guided steps, guided calls counted twice. Faster: the full run's wall-clock over the setting's in the same",
        "batch of 16 (median over the batches; one thread, transformer in bfloat16 with compiled blocks, on a machine",
        "on which other work ran: by processor time what was computed alone). Others' caches, ToCa and what decides",
        "picture by picture are drawn with blocks that aren't compiled: their times mean little. Fréchet distance: of",
        "the classifier's features to those of real renders; it falls with the number of pictures. Mean gradient:",
        "sharpness, good up to the full run's. The spectral and the perceptual distance (of the first 64 pictures),",
        "PSNR and SSIM are to the full run's picture of the same seed: likeness, which says little of how well a",
        "picture is drawn; the last two, where they are there, to 150 steps of the same seed (first 64 pictures),",
        "to which the full run is as like as the row of the 150 steps says.",
        "Held: what caches, histories and multistep samplers keep between the model's calls beyond the full run, of",
        "one picture, added up from the living tensors (`benchmarks.regime.costs`); guided twice, both halves keep",
        "theirs. Its last column is no measurement: the same tensors with FLUX.1-dev's sizes. Model calls count every",
        "picture that goes through the denoiser, also where a cache leaves blocks out: FLOPs tell that.",
        "Made by `python -m benchmarks.regime.study`.",
    ]
    for study in studies:
        for regime in REGIMES:
            if rows := compared(study, regime):
                lines += ["", f"## {study.model}, {TITLES[regime]}", "", drawn_table(rows), ""]
                lines.append(looks_table(rows, distances, f"{study.model}/{regime}"))
                lines += costs_table(study, rows)
            more = [one for one in compared(study, regime, ALL) if one.count > COUNT]
            if len(more) > 1:
                lines += ["", f"On more pictures, {study.model}, {TITLES[regime]}:", "", drawn_table(more)]
    return "\n".join(lines) + "\n"


def strip(study: Study) -> None:
    """A PNG of the first pictures of the main settings, a row each, both regimes' one below the other."""
    rows = {}
    for regime in REGIMES:
        main = {setting.name for setting in settings(study.model, regime, few=True)}
        for one in compared(study, regime):
            if one.name in main and study.kept(regime, one.name, 0).exists():
                scale = one.parts[0]["scale"]
                label = f"{one.name.replace('guided until t =', 'guided to')}\n{one.ratio:.1f}x, guidance {scale:g}"
                rows[label] = study.pictures(regime, one.name, 0)[:COLUMNS]
    if rows:
        path = study.out / f"study_{study.model}.png"
        save_grid(rows, list(scene_prompts("study", COLUMNS)), path)
        shrink(path, (1400, 2800), 160)


def write(studies: Sequence[Study]) -> str:
    """Writes study.md, study_frechet.json and the strips; returns the page."""
    out = studies[0].out
    text = page(studies, remembered(studies))
    (out / "study.md").write_text(text)
    for study in studies:
        strip(study)
    return text
