"""The results file of a sweep: JSON Lines, one header, then one record for each setting on each batch of prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ralu_cache.quality.base import MetricInfo
from ralu_cache.report.record import finite


@dataclass(frozen=True)
class Setting:
    """What is measured: a method (`ralu_cache.sweep.methods`) or a peer's name, steps asked for, and a size."""

    method: str
    steps: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


@dataclass(frozen=True)
class Batch:
    """Prompts and their seeds, equally many, that run in one pipeline call."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """One setting on one batch.

    seconds: wall-clock of the pipeline call, nan where it failed. full_seconds: that of the stock full run which was
        timed right before it, for a paired ratio; nan where this batch was run for quality alone.
    flops, full_flops: the transformer's, of this call and of the full run; nan where unknown.
    metrics: per metric one finite value for each picture (PSNR of equal pictures: 100 dB).
    features: per set metric one row for each picture.
    error: "Type: message" of a call that failed, else None.
    """

    setting: Setting
    batch: Batch
    seconds: float = float("nan")
    full_seconds: float = float("nan")
    flops: float = float("nan")
    full_flops: float = float("nan")
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    features: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    error: str | None = None

    @property
    def key(self) -> tuple[Setting, Batch]:
        return self.setting, self.batch


@dataclass(frozen=True)
class Header:
    """What holds for the whole sweep.

    full_steps: of the stock run that speed and likeness are compared with. call: further arguments of every pipeline
    call. metrics: by name, in the order to show; set metrics too. hardware, versions: where it was measured.
    """

    model: str
    full_steps: int
    call: Mapping[str, Any]
    metrics: Mapping[str, MetricInfo]
    hardware: str
    versions: Mapping[str, str]


@dataclass
class Results:
    """A results file in memory."""

    header: Header
    records: list[Record]

    @property
    def settings(self) -> list[Setting]:
        """In the order of their first record."""
        return list(dict.fromkeys(record.setting for record in self.records))


def write_header(path: Path, header: Header) -> None:
    """Begins a results file; makes the folder. Raises FileExistsError for one that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x") as file:
        file.write(_line({"sweep": asdict(header)}))


def append(path: Path, records: Iterable[Record]) -> None:
    """Adds records, each in one write that is on disk when this returns."""
    with path.open("a") as file:
        for record in records:
            file.write(_line(asdict(record)))
            file.flush()
            os.fsync(file.fileno())


def read_results(path: Path) -> Results:
    """Reads a results file; a last line that was cut off by a crash is left out.

    Raises ValueError, with the line's number, for a file that is not one of ours.
    """
    lines = path.read_text().split("\n")
    whole = lines[:-1]
    if not whole:
        raise ValueError(f"{path} has no header line; it is not a sweep's results file")
    try:
        data = json.loads(whole[0])["sweep"]
        infos = {name: MetricInfo(**info) for name, info in data.pop("metrics").items()}
        header = Header(metrics=infos, **data)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, line 1: not the header of a sweep ({error})") from error
    records = []
    for number, line in enumerate(whole[1:], 2):
        try:
            records.append(_record(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a sweep's record ({error})") from error
    return Results(header, records)


def drop_cut_line(path: Path) -> None:
    """Takes a last line that was cut off by a crash out of the file, so that it can be appended to."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)  # never rewritten: a kill in here must not cost what is there


def _record(data: dict[str, Any]) -> Record:
    setting, batch = Setting(**data.pop("setting")), data.pop("batch")
    for name in ("seconds", "full_seconds", "flops", "full_flops"):
        data[name] = float("nan") if data[name] is None else float(data[name])
    metrics = {name: _floats(values) for name, values in data.pop("metrics").items()}
    features = {name: tuple(_floats(row) for row in rows) for name, rows in data.pop("features").items()}
    where = Batch(tuple(batch["prompts"]), tuple(batch["seeds"]))
    return Record(setting, where, metrics=metrics, features=features, **data)


def _floats(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(float("nan") if value is None else float(value) for value in values)


def _line(data: dict[str, Any]) -> str:
    return json.dumps(finite(data), allow_nan=False) + "\n"
