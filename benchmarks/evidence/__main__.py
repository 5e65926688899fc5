"""The comparison that a sceptic would make: one command, in parts that go on where they were stopped.

    python -m benchmarks.evidence [--minutes 60] [--pictures 256] [--out benchmarks/results/evidence]
    python -m benchmarks.evidence --table

Draws what the regime's study (`benchmarks.regime.study`) is missing, ours and every other on the same prompts and
seeds, until the minutes are over; then compares ours with the best of the others at equal cost. `--table` draws none
but the pictures of the worst cases: those on which ours lose most, whoever wins.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.evidence.duels import Duel, Way, beside_ours, duels, ways
from benchmarks.evidence.page import page, plot, strip
from benchmarks.regime.pictures import scene_prompts
from benchmarks.regime.setting import Setting, draw
from benchmarks.regime.settings import FOUND, FULL, REGIMES, settings
from benchmarks.regime.study import FIRST_SEED, SOME, Study, run
from benchmarks.regime.study_page import compared, write

RESULTS = Path("benchmarks/results/evidence")
COUNT = 256  # pictures of the settings that are compared
WORST, ORDINARY = 5, 3  # pictures that are shown: on which ours lose most, and the first ones
SHOWN = 12.0  # the cost at which they are


def known_ways(study: Study, count: int) -> list[Way]:
    return ways(study.model, {regime: compared(study, regime) for regime in REGIMES}, count)


def show_worst(model: str, found: Sequence[Duel], every: Sequence[Way], path: Path) -> None:
    """Draws the full run, ours and the nearest of the others at a cost, on the worst and on ordinary prompts."""
    duel = min(found, key=lambda each: abs(each.ours.ratio - SHOWN))
    others = [way for way in every if way.kind == duel.kind and way.name != FULL]
    rival = min(others, key=lambda way: abs(way.ratio - duel.ours.ratio))
    chosen = [*duel.lost(WORST), *range(ORDINARY)]
    prompts = [scene_prompts("study", COUNT)[number] for number in chosen]
    seeds = [FIRST_SEED + number for number in chosen]
    rows = {}
    for name, scale in ((FULL, 6.0), (duel.ours.name, duel.ours.scale), (rival.name, rival.scale)):
        setting = setting_of(model, name, scale)
        drawn = draw(model, setting, prompts, seeds)
        rows[f"{name}\n{drawn.ratio:.1f}x, guidance {scale:g}"] = drawn.pictures
    strip(rows, prompts, path)


def setting_of(model: str, name: str, scale: float) -> Setting:
    every = (setting for regime in REGIMES for setting in settings(model, regime))
    return next(setting for setting in every if setting.name == name and setting.scale == scale)


def report(out: Path, count: int, draws: bool) -> str:
    """Writes results.json, evidence.md, the plots and, if it draws, the pictures; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Duel]] = {}
    for model in FOUND:
        every = known_ways(Study(model), count)
        found[model] = duels(every)
        plot(every, out / f"fronts_{model}.png", f"{model}: each method at its best guidance")
        if draws:
            show_worst(model, found[model], every, out / f"worst_{model}.png")
    rows = [
        {
            "model": model, "ours": duel.ours.told, "ratio": round(duel.ours.ratio, 3), "rival": duel.rival.told,
            "kind": duel.kind, "beyond": duel.rival.beyond, "attributes": round(duel.ours.mean, 2),
            "theirs": round(duel.rival.mean, 2), "wins": duel.wins,
            "difference": [round(value, 2) for value in vars(duel.difference()).values()],
        }
        for model, some in found.items()
        for duel in some
    ]  # fmt: skip
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    caches = {model: beside_ours(known_ways(Study(model), min(count, SOME))) for model in found}
    text = page(found, dict.fromkeys(found, count), caches, min(count, SOME))
    (out / "evidence.md").write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="no batch of pictures begins later")
    parser.add_argument("--pictures", type=int, default=COUNT)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only compare what was drawn")
    parser.add_argument("--without-pictures", action="store_true", help="draw no worst cases")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    end = time.monotonic() + 60 * options.minutes
    if not options.table:
        for model in FOUND:
            run(Study(model), False, options.pictures, until=end)
        write([Study(model) for model in FOUND])
    print(report(options.out, options.pictures, not options.without_pictures))


if __name__ == "__main__":
    main()
