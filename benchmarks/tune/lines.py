"""What the fronts of `benchmarks.tune.study` are made of: a setting on all pictures, its kind, and what it loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.regime.setting import Setting as ByHand
from benchmarks.regime.settings import FULL
from ralu_cache.quality.intervals import Interval, bootstrap

JUDGED = {"probability": 1, "attributes": 1, "scenes": 0, "perceptual": 0, "psnr": 1}
TUNED, PLANS, REUSE, OTHERS = "tuned", "plans by hand", "our reuse alone", "caches of others"
PLAIN, UNIPC, DPM = "plain steps", "UniPC", "DPM++2M"
KINDS = (TUNED, PLANS, REUSE, PLAIN, UNIPC, DPM, OTHERS)
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A setting on all pictures: times fewer FLOPs, its kind (one of KINDS), its loss on the prompts that it was chosen
    on, as a mean and at the upper end of its interval (None if it was not tuned), and, by measure, its values of each
    picture and what the full run has more."""

    name: str
    ratio: float
    kind: str
    train: float | None
    high: float | None
    values: Mapping[str, np.ndarray]
    lost: Mapping[str, Interval]


def kind_of(setting: ByHand) -> str:
    """Whose a setting of the regime's study is, and of which kind."""
    if setting.peer is not None or "reimplemented" in setting.name:
        return OTHERS
    if setting.spatial is not None:
        return PLANS
    if setting.temporal is not None:
        return REUSE
    return {"euler": PLAIN, "unipc": UNIPC, "dpm++2m": DPM}[setting.solver]


def lines_of(rows: Sequence[Row], kinds: Mapping[str, str], starts: set[int]) -> list[Line]:
    """Each setting that all batches have, against the full run of the same rows; the full run is left out.

    kinds: of the settings, by name; others were tuned.
    """
    by_name: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_name.setdefault(row["setting"], {})[row["start"]] = row
    full, found = by_name[FULL], []
    for name, parts in by_name.items():
        if name == FULL or not starts <= parts.keys():
            continue
        values = {key: joined(parts, key, starts) for key in JUDGED if all(key in parts[start] for start in starts)}
        lost = {
            key: bootstrap(joined(full, key, starts) - each)
            for key, each in values.items() if key not in ("perceptual", "psnr")
        }  # fmt: skip
        first = parts[min(starts)]
        own = first.get("train"), first.get("high")
        found.append(Line(name, first["ratio"], kinds.get(name, TUNED), *own, values, lost))
    return sorted(found, key=lambda line: line.ratio)


def joined(parts: Mapping[int, Row], key: str, starts: set[int]) -> np.ndarray:
    return np.concatenate([parts[start][key] for start in sorted(starts)])
