"""What is to be reached at real size, held against what was measured; nothing here is a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.contestants import FULL, PLAIN
from ralu_cache.sweep.methods import Method, parse_method

SPEEDUPS = {"ralu-4x": 4.2, "ralu-7x": 7.0}
OF_FLOPS = 0.95
COMPOSED = 12.0  # times faster, stages and reuse together
FORECAST_MS = 1.0  # of a step that is forecast
FORECAST_BYTES = 20e6  # held by the predictions
OVERHEAD = 0.02
MEMORY = 0.05
LITE = ("teacache", "seacache", "taylorseer")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """wanted: in words. found: in words, None where nothing was measured. reached: None likewise."""

    name: str
    wanted: str
    found: str | None = None
    reached: bool | None = None

    @property
    def state(self) -> str:
        return {True: "reached", False: "missed", None: "not measured"}[self.reached]


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Every goal, in the order in which they were set; `results` as the parts wrote them."""
    found = []
    for mode in ("eager", "compiled"):
        rows = {row["method"]: row for row in results.get(mode, {}).get("rows", [])}
        found += [_speedup(mode, rows, name, least) for name, least in SPEEDUPS.items()]
        found += [_of_flops(mode, rows, name) for name in SPEEDUPS]
        found.append(_composed(mode, rows))
    eager = {row["method"]: row for row in results.get("eager", {}).get("rows", [])}
    return [
        *found, *_forecasts(eager), _overhead(eager), _waits(results.get("waits", {}).get("waits", {})), _memory(eager),
        *_graphs(results.get("compiled", {})), *_agreement(results.get("agreement", {})),
        _joints(results.get("joints", {})),
    ]  # fmt: skip


def _goal(name: str, wanted: str, value: float | None, show: Callable[[float], str], good: bool) -> Goal:
    return Goal(name, wanted) if value is None else Goal(name, wanted, show(value), good)


def _speedup(mode: str, rows: Mapping[str, Row], name: str, least: float) -> Goal:
    value = rows[name]["speedup"] if name in rows else None
    wanted = f"at least {least:g}x faster than the full run"
    return _goal(f"{name}, {mode}", wanted, value, lambda v: f"{v:.2f}x", value is not None and value >= least)


def _of_flops(mode: str, rows: Mapping[str, Row], name: str) -> Goal:
    value = rows[name]["speedup"] / rows[name]["flop_ratio"] if name in rows else None
    wanted = f"at least {OF_FLOPS:.0%} of what FLOPs allow"
    good = value is not None and value >= OF_FLOPS
    return _goal(f"{name}, {mode}, of its FLOPs", wanted, value, lambda v: f"{v:.0%}", good)


def _composed(mode: str, rows: Mapping[str, Row]) -> Goal:
    """The fastest that has both."""
    name, wanted = f"stages and reuse, {mode}", f"at least {COMPOSED:g}x faster than the full run"
    some = [row for row in rows.values() if parts_of(row["method"]).spatial and parts_of(row["method"]).temporal]
    if not some:
        return Goal(name, wanted)
    best = max(some, key=lambda row: row["speedup"])
    return Goal(name, wanted, f"{best['speedup']:.2f}x (`{best['method']}`)", best["speedup"] >= COMPOSED)


def _forecasts(rows: Mapping[str, Row]) -> Sequence[Goal]:
    """What a step costs at which the model isn't called, and what the predictions take."""
    step, held = "a step that is forecast", "predictions held, without stages"
    wanted = f"under {FORECAST_MS:g} ms", f"under {FORECAST_BYTES / 1e6:g} MB"
    steps = [step for row in rows.values() for step in row["steps"].items()]
    times = [milliseconds for kind, milliseconds in steps if kind.endswith("forecast")]
    sizes = [row["held_bytes"] for row in rows.values() if row["method"].startswith("+forecast")]
    slow, big = max(times, default=None), max(sizes, default=None)
    return (
        _goal(step, wanted[0], slow, lambda v: f"at most {v:.2f} ms", slow is not None and slow < FORECAST_MS),
        _goal(held, wanted[1], big, lambda v: f"{v / 1e6:.1f} MB", big is not None and big < FORECAST_BYTES),
    )


def _overhead(rows: Mapping[str, Row]) -> Goal:
    """The dearest policy with every step computed, over as many plain steps; and the transitions, over the full run."""
    name, wanted = "hooks, ledger and transitions", f"at most {OVERHEAD:.0%} of a fully computed run"
    computed = [row for row in rows.values() if row["all_computed"]]
    transitions = [row["transition_seconds"] for row in rows.values() if row["transition_seconds"] is not None]
    if not computed or not transitions or PLAIN not in rows:
        return Goal(name, wanted)
    hooks = max(row["seconds"] for row in computed) / rows[PLAIN]["seconds"] - 1
    moves = max(transitions) / rows[FULL]["seconds"]
    return Goal(name, wanted, f"{hooks:.1%} and {moves:.1%}", hooks + moves <= OVERHEAD)


def _waits(found: Mapping[str, Any]) -> Goal:
    name, wanted = "host waits in a step", "1 for its decision, 0 without one, transitions apart"
    measured = {label: waits for label, waits in found.items() if waits["most"] is not None}
    if not measured:
        return Goal(name, wanted)
    good = all(waits["most"] <= int(waits["decides"]) for waits in measured.values())
    return Goal(name, wanted, ", ".join(f"`{label}` {waits['most']}" for label, waits in measured.items()), good)


def _memory(rows: Mapping[str, Row]) -> Goal:
    """On top of the full run's peak, of every policy that keeps residuals alone."""
    name, wanted = "peak memory of " + ", ".join(LITE), f"at most {MEMORY:.0%} more than the full run"
    some = [row for row in rows.values() if row["all_computed"] or _lite(row["method"])]
    stock = rows[FULL]["peak_bytes"] if FULL in rows else 0
    if not some or not stock:
        return Goal(name, wanted)
    most = max(some, key=lambda row: row["peak_bytes"])
    share = most["peak_bytes"] / stock - 1
    return Goal(name, wanted, f"{share:+.1%} (`{most['method']}`)", share <= MEMORY)


def parts_of(method: str) -> Method:
    """What a contestant is made of by its name; nothing, of one whose name is a sentence."""
    return Method(None, None) if " " in method else parse_method(method)


def _lite(method: str) -> bool:
    temporal = parts_of(method).temporal or ""
    return temporal.partition(":")[0] in LITE and "per_layer=true" not in temporal


def _graphs(part: Mapping[str, Any]) -> Sequence[Goal]:
    first, later = "graphs", "graphs of a second call"
    wanted = "at each token count at most those of the stock run, without a break"
    if "graphs" not in part:
        return Goal(first, wanted), Goal(later, "none")
    (one, other), counts = part["graphs_of_stock"], len(part["token_counts"])
    most = one + other * (counts - 1)
    found = f"{part['graphs']} at {counts} token counts; stock {one} at a first, {other} at a second"
    again = part["graphs_of_later_calls"]
    return Goal(first, wanted, found, part["graphs"] <= most), Goal(later, "none", str(again), again == 0)


def _agreement(part: Mapping[str, Any]) -> Sequence[Goal]:
    name, same = "numerical agreement", "nothing reused is stock"
    wanted, bits = "every candidate's error within the bound", "bit for bit"
    if "rows" not in part:
        return Goal(name, wanted), Goal(same, bits)
    outside = [row["candidate"] for row in part["rows"] if not row["within"]]
    found = f"{len(part['rows']) - len(outside)} of {len(part['rows'])}" + "".join(f"; not {c}" for c in outside)
    equal = all(part["same_bits"].values())
    return Goal(name, wanted, found, not outside), Goal(same, bits, "equal" if equal else "different", equal)


def _joints(part: Mapping[str, Any]) -> Goal:
    name, wanted = "at the joints", "off is stock, and precision, offload and threads change no picture"
    if "rows" not in part:
        return Goal(name, wanted)
    bad = [f"{row['check']} ({row['kind']})" for row in part["rows"] if not row["good"]]
    found = f"{len(part['rows']) - len(bad)} of {len(part['rows'])}" + "".join(f"; not {b}" for b in bad)
    return Goal(name, wanted, found, not bad)
