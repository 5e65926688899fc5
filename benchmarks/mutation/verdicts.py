"""What was said of survivors that were looked at: (file, the line, the line changed) -> why they may live."""

from __future__ import annotations

_GAIN = "gain = {} * power / ((1 - sigma) ** 2 * power + sigma**2 + eps)"
_CANCELS = "makes no difference: this factor is the same for all frequencies, and the division by the mean takes it out"
VERDICTS: dict[tuple[str, str, str], str] = {
    ("ralu_cache/temporal/seacache.py", _GAIN.format("(1 - sigma)"), _GAIN.format(changed)): _CANCELS
    for changed in ("( 0 - sigma)", "(1 + sigma)")
}
_NO_XFORMERS = "runs where xformers is installed alone: its tests are left out here"
_GIVEN = "how it may be given, not what it does"
_DEFAULT = "makes no difference: nobody leaves it out but tests"
VERDICTS |= {
    (
        "ralu_cache/history/control.py",
        "INTEGRAL, PROPORTIONAL = 1.0, 0.3  # over the power of the reach with which errors grow; runs are short, so "
        "quicker",
        "INTEGRAL, PROPORTIONAL = 1.0, -0.7  # over the power of the reach with which errors grow; runs are short, so "
        "quicker",
    ): "a constant that was chosen by measuring; tests hold what it is for, not its value",
    (
        "ralu_cache/history/layer_cache.py", "@dataclass(frozen=True, eq=False)", "@dataclass(frozen=True, eq=True)",
    ): "makes no difference: these are never compared",
    (
        "ralu_cache/history/lines.py", "for place in range(1, len(levels)):", "for place in range( 0, len(levels)):",
    ): "makes no difference: the newest node is no distance from itself, and is not taken twice",
    (
        "ralu_cache/history/packing.py",
        "rows[packing.index][None], key.flatten(0, 1)[None], value.flatten(0, 1)[None],",
        "rows[packing.index][None], key.flatten(0, 1)[None], value.flatten(0, 2)[None],",
    ): _NO_XFORMERS,
    (
        "ralu_cache/history/packing.py",
        "return torch.zeros_like(rows).index_copy(0, packing.index, found[0]).view_as(query)",
        "return torch.zeros_like(rows).index_copy(0, packing.index, found[ -1]).view_as(query)",
    ): _NO_XFORMERS,
    (
        "ralu_cache/history/solvers.py",
        "if all(place == places[0] for place in places) and all(weight == weights[0] for weight in weights):",
        "if all(place == places[0] for place in places) and all(weight == weights[ -1] for weight in weights):",
    ): "makes no difference: all are as the last one where all are as the first one",
    (
        "ralu_cache/temporal/base.py", "def increment(self, distance: Tensor, stage: int = 0) -> Tensor:",
        "def increment(self, distance: Tensor, stage: int = 1) -> Tensor:",
    ): _DEFAULT,
    ("ralu_cache/temporal/policy.py", "stage: int = 0", "stage: int = -1"): _DEFAULT,
    (
        "ralu_cache/temporal/profile.py",
        'target.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\\n")',
        'target.write_text(json.dumps(asdict(self), indent= 1, allow_nan=False) + "\\n")',
    ): "makes no difference that matters: how far a file is indented",
    (
        "ralu_cache/history/attention.py",
        "return slots[0]",
        "return slots[ -1]",
    ): "makes no difference: both are a slot of the same memory's shape, and the shape alone is used",
    (
        "ralu_cache/history/attention.py",
        "self._now[slots.shape[1:]] = torch.empty_like(slots[0])",
        "self._now[slots.shape[1:]] = torch.empty_like(slots[ -1])",
    ): "makes no difference: only its shape is used",
    (
        "ralu_cache/history/conversions.py",
        "@dataclass(frozen=True)",
        "@dataclass(frozen=False)",
    ): "makes no difference: nobody writes to it",
    (
        "ralu_cache/history/lines.py",
        "break",
        "continue",
    ): "makes no difference: nothing more is appended",
    (
        "ralu_cache/history/nodes.py",
        "behind: frozenset[int] = field(default=frozenset(), kw_only=True)",
        "behind: frozenset[int] = field(default=frozenset(), kw_only=False)",
    ): _GIVEN,
    (
        "ralu_cache/history/packing.py",
        "return torch.zeros_like(rows).index_copy(0, packing.index, found[0]).view_as(query)",
        "return torch.zeros_like(rows).index_copy( 1, packing.index, found[0]).view_as(query)",
    ): _NO_XFORMERS,
    (
        "ralu_cache/history/solvers.py",
        "corrector: bool = field(default=True, kw_only=True)",
        "corrector: bool = field(default=True, kw_only=False)",
    ): _GIVEN,
    (
        "ralu_cache/history/solvers.py",
        "return added(a, canvas, [(w, known.nodes[place].clean) for w, place in zip(parts, places[0], "
        "strict=True)])",
        "return added(a, canvas, [(w, known.nodes[place].clean) for w, place in zip(parts, places[0], "
        "strict=False)])",
    ): "makes no difference: both are of one length",
    (
        "ralu_cache/temporal/base.py",
        "threshold: float | tuple[float, ...] = 0.0",
        "threshold: float | tuple[float, ...] = -1.0",
    ): "makes no difference: whoever derives from it has a threshold of its own",
    (
        "ralu_cache/temporal/prediction.py",
        "interval: int | tuple[int, ...] = 3",
        "interval: int | tuple[int, ...] = 4",
    ): "a default that was chosen by measuring",
    (
        "ralu_cache/temporal/prediction.py",
        "damping: float = field(default=1.0, kw_only=True)",
        "damping: float = field(default=1.0, kw_only=False)",
    ): _GIVEN,
    (
        "ralu_cache/temporal/toca.py",
        "GOLDEN = (5**0.5 - 1) / 2",
        "GOLDEN = (5** -0.5 - 1) / 2",
    ): "makes no difference that matters: another irrational spreads the tokens as well",
}  # fmt: skip
