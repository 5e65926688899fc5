"""Whether the evidence comes out again: a random tenth of the study's rows is drawn once more, and held beside them.

    python -m benchmarks.evidence.again [--share 0.1] [--seed 0] [--models tiny-flux tiny-flux-dev tiny-sd3]

A row is a setting on 16 pictures. Goes on where it stopped; writes again.jsonl and again.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.regime.measures import OUT as REGIME
from benchmarks.regime.pictures import to_bytes
from benchmarks.regime.search import rows_of
from benchmarks.regime.settings import FOUND, FULL, settings
from benchmarks.regime.study import Row, Study, batch_at, latest, measured
from ralu_cache.quality.base import Pictures
from ralu_cache.report.table import Table

OUT = Path("benchmarks/results/evidence")
COMPARED = {"attributes": "%", "scenes": "%", "probability": "%", "sharpness": "‰", "psnr": "dB"}


def chosen(study: Study, share: float, seed: int) -> list[Row]:
    """A random share of the rows that count today, at least one, those of a batch beside each other; the full runs are
    drawn with them anyway."""
    known = latest(study.rows(), study.model)
    named = [one for regime in known.values() for one in regime.items()]
    rows = [row for name, parts in named if name != FULL for row in parts.values()]
    count = max(1, round(share * len(rows)))
    found = [rows[number] for number in np.random.default_rng(seed).choice(len(rows), count, replace=False)]
    return sorted(found, key=batch)


def batch(row: Row) -> tuple[str, int]:
    """The rows that share a full run."""
    return row["regime"], row["start"]


def again(study: Study, row: Row, full: Pictures) -> dict[str, Any]:
    """The row's pictures drawn once more: of each measure its mean then and now, and the largest difference of one
    picture.

    full: the full run's of that batch, drawn once more too.
    """
    shown, ratio = drawn(study, row, row["setting"])
    now = measured(shown, full, batch_at(row["start"])[0], row["start"])
    return {
        "model": study.model, "regime": row["regime"], "setting": row["setting"], "start": row["start"],
        "ratio": [row["ratio"], round(ratio, 3)],
        **{name: [_mean(row[name]), _mean(now[name]), _most(row[name], now[name])] for name in COMPARED},
    }  # fmt: skip


def drawn(study: Study, row: Row, name: str) -> tuple[Pictures, float]:
    """A setting's pictures of the row's batch, in 8 bits as the study keeps them, and what its FLOPs are fewer."""
    setting = next(each for each in settings(study.model, row["regime"]) if each.name == name)
    found = study.draw(study.model, setting, *batch_at(row["start"]))
    return (to_bytes(found.pictures) / 255).astype(np.float32), found.ratio


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 3)


def _most(before: Sequence[float], now: Sequence[float]) -> float:
    return round(float(np.max(np.abs(np.subtract(before, now)))), 3)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The Markdown page."""
    lines = [
        "# A random tenth, drawn again", "",
        "Made by `python -m benchmarks.evidence.again`: rows of the study (16 pictures of a setting each), chosen by",
        "chance, drawn once more by today's code. Of each measure the change on average over the rows; then the most",
        "that a row's mean changed; in brackets a picture. Rows drawn on another processor differ in how bfloat16 is",
        "rounded; an attribute that is seen otherwise in one picture is 0.9 to 1.3 % of a row.", "",
    ]  # fmt: skip
    cells = []
    for model in FOUND:
        mine = [row for row in rows if row["model"] == model]
        if mine:
            changes = [_changes([row[name] for row in mine]) for name in COMPARED]
            same = sum(all(row[name][2] == 0 for name in COMPARED) for row in mine)
            cells.append([model, str(len(mine)), str(same), *changes])
    titles = ("model", "rows", "alike in every figure", *(f"{name}, {unit}" for name, unit in COMPARED.items()))
    return "\n".join([*lines, Table(titles, cells).markdown()]) + "\n"


def _changes(values: Sequence[Sequence[float]]) -> str:
    """values: of each row the mean then and now, and the largest difference of one picture."""
    moved = [now - before for before, now, _ in values]
    return f"{np.mean(moved):+.2g}; {max(map(abs, moved)):.3g} ({max(most for *_, most in values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", choices=list(FOUND), default=list(FOUND))
    parser.add_argument("--study", type=Path, default=REGIME, help="the study's folder")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / "again.jsonl"
    rows = rows_of(path)
    done = {(row["model"], row["regime"], row["setting"], row["start"]) for row in rows}
    for model in options.models:
        study = Study(model, options.study)
        left = [
            row for row in chosen(study, options.share, options.seed)
            if (model, row["regime"], row["setting"], row["start"]) not in done
        ]  # fmt: skip
        bar = tqdm(total=len(left), desc=model, mininterval=30)
        for _, group in groupby(left, batch):
            some = list(group)
            full = drawn(study, some[0], FULL)[0]
            for row in some:
                rows.append(again(study, row, full))
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1], separators=(",", ":")) + "\n")
                bar.update()
    page = table(rows)
    (options.out / "again.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
