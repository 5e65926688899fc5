"""The comparison that a sceptic would make: one command, in parts that go on where they were stopped.

    python -m benchmarks.evidence [--minutes 60] [--pictures 256] [--models tiny-flux tiny-flux-dev tiny-sd3]
    python -m benchmarks.evidence --table

Draws what the regime's study (`benchmarks.regime.study`) is missing, ours and every other on the same prompts and
seeds, until the minutes are over; then compares ours with the best of the others at equal cost, each model on as many
pictures as its plain steps have (at most --pictures). `--table` draws none but the pictures of the worst cases: those
on which ours lose most, whoever wins. A model of which nothing was drawn yet is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.duels import MEASURES, OURS, Duel, Way, duels
from benchmarks.evidence.known import all_caches, known_ways, pictures_of
from benchmarks.evidence.page import page, plot, strip
from benchmarks.regime.measures import OUT as REGIME
from benchmarks.regime.pictures import SHELF, scene_prompts
from benchmarks.regime.setting import Setting, draw
from benchmarks.regime.settings import FOUND, FULL, REGIMES, STRONG, settings
from benchmarks.regime.study import COUNT, FIRST_SEED, Study, run
from benchmarks.regime.study_page import write
from ralu_cache.quality.base import Pictures

RESULTS = Path("benchmarks/results/evidence")
WORST, ORDINARY = 5, 3  # pictures that are shown: on which ours lose most, and the first ones
SHOWN = 12.0  # the cost at which they are
RIVALS = 3  # of the others, the nearest in cost


def show_worst(model: str, found: Sequence[Duel], every: Sequence[Way], path: Path) -> None:
    """Draws the full run, ours and the nearest of the others at a cost, on the worst and on ordinary prompts; below
    each row of pictures how its pixels differ from the full run's, four times as strong."""
    duel = min(found, key=lambda each: abs(each.ours.ratio - SHOWN))
    others = [way for way in every if way.kind != OURS and way.name != FULL]
    rivals = sorted(others, key=lambda way: abs(np.log(way.ratio / duel.ours.ratio)))[:RIVALS]
    chosen = list(dict.fromkeys([*duel.lost(WORST), *range(ORDINARY)]))  # a worst one may be among the first
    prompts = [scene_prompts("study", COUNT)[number] for number in chosen]
    seeds = [FIRST_SEED + number for number in chosen]
    rows: dict[str, Pictures] = {}
    full = None
    for name, scale in ((FULL, STRONG), *((way.name, way.scale) for way in (duel.ours, *rivals))):
        drawn = draw(model, setting_of(model, name, scale), prompts, seeds)
        label = f"{name}\n{drawn.ratio:.1f}x, guidance {scale:g}"
        rows[label] = drawn.pictures
        if full is None:
            full = drawn.pictures
        else:
            rows[f"{label}\ndifference, 4 times"] = np.clip(0.5 + 2 * (drawn.pictures - full), 0, 1)
    strip(rows, prompts, path)


def setting_of(model: str, name: str, scale: float) -> Setting:
    every = (setting for regime in REGIMES for setting in settings(model, regime))
    return next(setting for setting in every if setting.name == name and setting.scale == scale)


def report(studies: Sequence[Study], out: Path, most: int, draws: bool) -> str:
    """Writes results.json, evidence.md, the plots and, if it draws, the pictures; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Duel]] = {}
    caches: dict[str, list[Duel]] = {}
    for study in studies:
        model, count = study.model, pictures_of(study, most)
        if not count:
            continue
        every = known_ways(study, count)
        found[model], caches[model] = duels(every), all_caches(study, most)
        plot(every, out / f"fronts_{model}.png", f"{model}: each method at its best guidance")
        if draws:
            show_worst(model, found[model], every, out / f"worst_{model}.png")
    rows = [row_of(model, duel) for model, some in found.items() for duel in some]
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = page(found, caches)
    (out / "evidence.md").write_text(text)
    return text


def row_of(model: str, duel: Duel) -> dict[str, Any]:
    """What results.json keeps of a duel."""
    rival = duel.rival
    return {
        "model": model, "ours": duel.ours.told, "ratio": round(duel.ours.ratio, 3), "rival": rival.told,
        "kind": duel.kind, "beyond": rival.beyond, "attributes": round(duel.ours.mean, 2),
        "theirs": round(rival.mean, 2),
        "measures": {
            name: {
                "difference": [round(value, 4) for value in vars(duel.difference(name)).values()],
                "better, equal, worse": duel.wins(name), "ours": duel.verdict(name),
            }
            for name, values in duel.ours.values.items() if name in MEASURES and len(values)
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="no batch of pictures begins later")
    parser.add_argument("--pictures", type=int, default=COUNT)
    parser.add_argument("--models", nargs="+", choices=list(FOUND), default=list(FOUND), help="that are drawn")
    parser.add_argument("--study", type=Path, default=REGIME, help="the study's folder")
    parser.add_argument("--shelf", type=Path, default=SHELF)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only compare what was drawn")
    parser.add_argument("--without-pictures", action="store_true", help="draw no worst cases")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    end = time.monotonic() + 60 * options.minutes
    studies = [Study(model, options.study, options.shelf) for model in FOUND]
    if not options.table:
        for study in studies:
            if study.model in options.models:
                run(study, False, options.pictures, until=end)
        write(studies)
    print(report(studies, options.out, options.pictures, not options.without_pictures))


if __name__ == "__main__":
    main()
