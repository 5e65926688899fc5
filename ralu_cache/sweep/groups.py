"""The groups that a sweep's settings fall into, what they are called and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from ralu_cache.sweep.summary import Row, Summary


@dataclass(frozen=True)
class Look:
    """A group's title, its colour (Okabe and Ito 2008, told apart by colour-blind readers), and matplotlib's marker."""

    title: str
    colour: str
    marker: str


LOOKS = {
    "full": Look("full run", "#777777", "*"),
    "steps": Look("fewer plain steps", "#777777", "X"),
    "peer": Look("peers", "#d55e00", "^"),
    "spatial": Look("ours: spatial only", "#cc79a7", "s"),
    "temporal": Look("ours: temporal only", "#0072b2", "o"),
    "guidance": Look("ours: guidance only", "#e69f00", "v"),
    "solver": Look("ours: solver only", "#56b4e9", "P"),
    "combined": Look("ours: stacked", "#009e73", "D"),
}
"""By `Row.family`, in the order to show."""
OURS = ("spatial", "temporal", "guidance", "solver", "combined")
OTHERS = ("steps", "peer")
"""What a user has without this library; the full run is of neither side."""


def numbers(summary: Summary) -> dict[tuple[str, int], int]:
    """1, 2, ... for every (method, steps) but the full run, from slow to fast; all sizes of one share its number."""
    keys = dict.fromkeys(number_key(row) for row in summary.by_speed if row.family != "full")
    return {key: number for number, key in enumerate(keys, 1)}


def number_key(row: Row) -> tuple[str, int]:
    return row.setting.method, row.setting.steps
