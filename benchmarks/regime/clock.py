"""Wall-clock of the shipped models as they come (float32, nothing compiled): full run and presets in turns.

    python -m benchmarks.regime.clock [--models tiny-flux tiny-sd3] [--rounds 5] [--batch 4]

Guidance 6 (classifier-free, so every step is computed twice unless a plan leaves it out), 128x128 pixels, one thread.
A round draws the full run and then each preset once, in an order that turns from round to round; a ratio is taken
within a round, and the median over the rounds is told with the least and the most. Writes clock.json and clock.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.regime.measures import OUT
from benchmarks.regime.pictures import load, scene_prompts
from benchmarks.regime.setting import Setting, draw
from benchmarks.regime.settings import FOUND, FULL, STRONG
from ralu_cache.report.table import Table

TITLES = ("setting", "rounds", "fewer FLOPs", "faster", "by processor time")
PRESETS = ("ralu-8x", "ralu-12x", "ralu-15x", "ralu-18x", "ralu-22x")
SETTINGS = (
    Setting(FULL, STRONG),
    *(Setting(name, STRONG, spatial=name) for name in PRESETS),
    Setting("7 plain steps", STRONG, 7, 2.5),
)


def measure(model: str, rounds: int, batch: int) -> dict[str, dict[str, list[float]]]:
    """For each setting the ratio of FLOPs and, round by round, the full run's seconds over its own: by the clock, and
    by what the process itself computed."""
    prompts, pipe = scene_prompts("train", batch), load(model, None)
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(-1, rounds):  # the first one warms up
        first = number % (len(SETTINGS) - 1)
        order = (SETTINGS[0], *SETTINGS[1 + first :], *SETTINGS[1 : 1 + first])
        drawn = {setting.name: draw(model, setting, prompts, range(batch), pipe) for setting in order}
        if number >= 0:
            for name, one in drawn.items():
                values = found.setdefault(name, {"ratio": [], "faster": [], "processor": []})
                values["ratio"] = [round(one.ratio, 2)]
                values["faster"].append(round(drawn[FULL].seconds / one.seconds, 2))
                values["processor"].append(round(drawn[FULL].processor / one.processor, 2))
    return found


def table(found: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], batch: int) -> str:
    """The Markdown page."""
    lines = [
        f"# Wall-clock of the presets, float32, nothing compiled, {batch} pictures a call, one thread",
        "",
        "The full run's seconds over the preset's in the same round; the median of the rounds, in brackets the least",
        "and the most. Guidance 6. By processor time, what ran beside it on the machine counts little.",
        "Made by `python -m benchmarks.regime.clock`.",
    ]
    for model, settings in found.items():
        rows = []
        for name, values in settings.items():
            each = [values[clock] for clock in ("faster", "processor")]
            told = ["" if name == FULL else f"{np.median(of):.1f}x ({min(of):.1f} to {max(of):.1f})" for of in each]
            rows.append([name, str(len(each[0])), f"{values['ratio'][0]:.1f}x", *told])
        lines += ["", f"## {model}", "", Table(TITLES, rows).markdown()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(FOUND), default=list(FOUND))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = options.out / "clock.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for model in options.models:
        found[model] = measure(model, options.rounds, options.batch)
        path.write_text(json.dumps(found) + "\n")
    (options.out / "clock.md").write_text(table(found, options.batch))
    print(table(found, options.batch))


if __name__ == "__main__":
    main()
