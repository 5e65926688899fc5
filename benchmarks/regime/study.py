"""Who draws as the full run does at what cost, where few steps break pictures; guided strongly, and each at its best.

    python -m benchmarks.regime.study --model tiny-flux|tiny-flux-dev|tiny-sd3 [--few] [--pictures 256]
    python -m benchmarks.regime.study --table

Prompts and seeds are of this study alone: no setting was chosen on them. Goes on where it stopped: a line of JSON for
each batch of 16 pictures and setting; the pictures stay in --shelf, so that measures can be made again (`--remeasure`).
Lines of other weights than the model has today don't count, and are drawn again.
Within a batch the settings take turns at coming first, so that seconds are compared within minutes. `--table` writes
study.md and a strip of pictures for each model.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.regime.measures import MEASURES, OUT
from benchmarks.regime.pictures import SHELF, fingerprint, scene_prompts, to_bytes
from benchmarks.regime.setting import Draw, Setting, draw
from benchmarks.regime.settings import FOUND, FULL, REFERENCE, REGIMES, drawn_of, settings
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.quality.base import Pictures
from ralu_cache.quality.likeness import EQUAL_DB
from ralu_cache.quality.texture import mean_gradient

BATCH = 16
COUNT = 256  # pictures of the settings that are compared
FIRST_SEED = 60_000
PERCEPTUAL = 64  # pictures of which the slow perceptual distance is taken
DIGITS = {"attributes": 1, "scenes": 0, "probability": 1, "shapes": 0, "spectrum": 2, "psnr": 2, "ssim": 3}
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One model's lines of JSON in `out` and pictures in `shelf`; `draw` draws what is missing."""

    model: str
    out: Path = OUT
    shelf: Path = SHELF
    draw: Draw = draw
    session: int = field(default_factory=lambda: round(time.time()))  # times are compared within one alone

    @property
    def path(self) -> Path:
        return self.out / f"study_{self.model}.jsonl"

    @property
    def weights(self) -> str:
        return fingerprint(EMBEDDED[self.model].folder)

    @property
    def record(self) -> Path:
        """Where Fréchet distances of all models are written down."""
        return self.out / "study_frechet.json"

    def distances(self) -> dict[str, list[float]]:
        """Those, each with its interval, by "model/regime/setting/pictures"."""
        known: dict[str, list[float]] = json.loads(self.record.read_text()) if self.record.exists() else {}
        return known

    def rows(self) -> list[Row]:
        """Those of today's weights; the first lines of the project told none, and are of those that tiny-flux and
        tiny-sd3 still have."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [row for row in map(json.loads, lines) if row.get("weights", self.weights) == self.weights]

    def kept(self, regime: str, name: str, start: int) -> Path:
        slug = "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in name)
        return self.shelf / "study" / self.model / regime / slug / f"{start:04d}.npy"

    def pictures(self, regime: str, name: str, start: int) -> Pictures:
        """As they were kept, in 8 bits."""
        shown: Pictures = (np.load(self.kept(regime, name, start)) / 255).astype(np.float32)
        return shown

    def measured(self, regime: str, name: str, start: int, prompts: Sequence[str]) -> dict[str, list[float]]:
        """All measures of each kept picture, rounded; likeness to the reference where that is kept."""
        shown, full = (self.pictures(regime, one, start) for one in (name, FULL))
        values = measured(shown, full, prompts, start)
        if name != REFERENCE and self.kept(regime, REFERENCE, start).exists():
            values |= likeness(shown, self.pictures(regime, REFERENCE, start))
        return values

    def add(self, row: Row) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")


def turns(model: str, few: bool, batch: int, only: Collection[str] = ()) -> Iterator[tuple[str, Setting]]:
    """The settings of both regimes in the order of a batch: full runs and references first, the others each in turn.

    only: the names of those that are wanted beside the full runs; all, if there are none.
    """
    known = [
        (regime, setting)
        for regime in REGIMES
        for setting in drawn_of(model, regime, batch * BATCH, few)
        if not only or setting.name in (FULL, *only)
    ]
    yield from (one for one in known if one[1].name == FULL)
    yield from (one for one in known if one[1].name == REFERENCE)
    others = [one for one in known if one[1].name not in (FULL, REFERENCE)]
    first = batch * 5 % len(others)
    yield from (*others[first:], *others[:first])


def run(study: Study, few: bool, count: int, only: Collection[str] = (), until: float = math.inf) -> None:
    """Draws and measures what is missing of the first `count` pictures; no batch begins after `until` (monotonic)."""
    prompts = scene_prompts("study", count)
    done = {(row["start"], row["regime"], row["setting"], row["made"]) for row in study.rows()}
    for start in tqdm(range(0, count, BATCH), desc=study.model, disable=None):
        if time.monotonic() > until:
            return
        chosen = prompts[start : start + BATCH]
        seeds = range(FIRST_SEED + start, FIRST_SEED + start + len(chosen))
        whole: list[Row] = []  # of full runs and references, which both regimes may share
        for regime, setting in turns(study.model, few, start // BATCH, only):
            if (start, regime, setting.name, setting.made) in done:
                continue
            twin = next((other for other in whole if other["made"] == setting.made), None)
            if twin is not None:
                pictures, cost = study.pictures(twin["regime"], twin["setting"], start), twin
            else:
                drawn = study.draw(study.model, setting, chosen, seeds)
                pictures = drawn.pictures
                cost = {name: round(getattr(drawn, name), 3) for name in ("ratio", "seconds", "processor")}
            keep(study.kept(regime, setting.name, start), pictures)
            row = {"start": start, "regime": regime, "setting": setting.name, "made": setting.made}
            row |= {"session": study.session, "weights": study.weights}
            row |= {"scale": setting.scale} | {name: cost[name] for name in ("ratio", "seconds", "processor")}
            if setting.name in (FULL, REFERENCE):
                whole.append(row)
            if setting.name != FULL and not study.kept(regime, FULL, start).exists():
                # of a study that was begun elsewhere
                again = next(one for one in settings(study.model, regime) if one.name == FULL)
                keep(study.kept(regime, FULL, start), study.draw(study.model, again, chosen, seeds).pictures)
            study.add(row | study.measured(regime, setting.name, start, chosen))


def batch_at(start: int) -> tuple[tuple[str, ...], range]:
    """Prompts and seeds of the pictures from `start` on."""
    return tuple(scene_prompts("study", start + BATCH)[start:]), range(FIRST_SEED + start, FIRST_SEED + start + BATCH)


def shelve(study: Study) -> None:
    """Draws once more what the shelf lacks of the main claims' pictures: the first ones, for strips, and all of those
    whose Fréchet distance is not known. Adds no rows."""
    found, known = latest(study.rows(), study.model), study.distances()
    for regime in REGIMES:
        for setting in tqdm(settings(study.model, regime, few=True), desc=f"{study.model}, {regime}", disable=None):
            starts = [start for start in sorted(found.get(regime, {}).get(setting.name, {})) if start < COUNT]
            is_known = f"{study.model}/{regime}/{setting.name}/{BATCH * len(starts)}" in known
            for start in starts[: 1 if is_known else None]:
                if not (path := study.kept(regime, setting.name, start)).exists():
                    keep(path, study.draw(study.model, setting, *batch_at(start)).pictures)


def keep(path: Path, pictures: Pictures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        np.save(file, to_bytes(pictures))
    unfinished.replace(path)


def measured(shown: Pictures, full: Pictures, prompts: Sequence[str], start: int) -> dict[str, list[float]]:
    """All measures of each picture, rounded; perceptual distances of the first pictures only."""
    found = {name: MEASURES[name].of(shown, full, prompts) for name in DIGITS}
    found["psnr"] = np.minimum(found["psnr"], EQUAL_DB)
    values = {name: np.round(each, DIGITS[name]).tolist() for name, each in found.items()}
    values["sharpness"] = np.round(1000 * np.array(mean_gradient(shown)), 2).tolist()
    if start < PERCEPTUAL:
        values["perceptual"] = np.round(MEASURES["perceptual"].of(shown, full, prompts), 1).tolist()
    return values


def likeness(shown: Pictures, reference: Pictures) -> dict[str, list[float]]:
    """To the run of 150 steps of the same seeds."""
    values = np.minimum(MEASURES["psnr"].of(shown, reference, ()), EQUAL_DB)
    return {
        "psnr_150": np.round(values, DIGITS["psnr"]).tolist(),
        "ssim_150": np.round(MEASURES["ssim"].of(shown, reference, ()), DIGITS["ssim"]).tolist(),
    }  # fmt: skip


def remeasure(study: Study) -> None:
    """The measures of all rows whose pictures are kept, made again from these."""
    rows = study.rows()
    prompts = scene_prompts("study", max(row["start"] for row in rows) + BATCH)
    for row in rows:
        names = (row["setting"], FULL)
        if all(study.kept(row["regime"], name, row["start"]).exists() for name in names):
            count = len(study.pictures(row["regime"], row["setting"], row["start"]))
            chosen = prompts[row["start"] :][:count]
            row |= study.measured(row["regime"], row["setting"], row["start"], chosen)
    study.path.unlink()
    for row in rows:
        study.add(row)


def latest(rows: Sequence[Row], model: str) -> Mapping[str, Mapping[str, Mapping[int, Row]]]:
    """Rows by regime, setting and start; only those made by today's settings, in their order."""
    made = {
        (regime, setting.name): setting.made for regime in REGIMES for setting in settings(model, regime)
    }  # fmt: skip
    found: dict[str, dict[str, dict[int, Row]]] = {}
    for regime, name in made:
        mine = [row for row in rows if (row["regime"], row["setting"]) == (regime, name)]
        parts = {row["start"]: row for row in mine if row["made"] == made[regime, name]}
        if parts:
            found.setdefault(regime, {})[name] = parts
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    from benchmarks.regime.study_page import write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(FOUND), default="tiny-flux")
    parser.add_argument("--few", action="store_true", help="only what the main claims need")
    parser.add_argument("--only", nargs="+", default=(), help="names of the settings beside the full runs")
    parser.add_argument("--pictures", type=int, default=COUNT)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--shelf", type=Path, default=SHELF)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="write the page and the strips, and draw nothing")
    parser.add_argument("--shelve", action="store_true", help="draw again what isn't kept here, and no more")
    parser.add_argument("--remeasure", action="store_true", help="measure what is kept again, and draw nothing")
    options = parser.parse_args(arguments)
    if options.pictures < BATCH or options.pictures % BATCH:
        parser.error(f"--pictures must be a multiple of {BATCH}, got {options.pictures}")
    torch.set_num_threads(options.threads)
    study = Study(options.model, options.out, options.shelf)
    if options.remeasure:
        remeasure(study)
    elif options.shelve:
        shelve(study)
    elif not options.table:
        run(study, options.few, options.pictures, options.only)
    print(write([Study(model, options.out, options.shelf) for model in FOUND]))


if __name__ == "__main__":
    main()
