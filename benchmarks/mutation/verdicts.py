"""What was said of survivors that were looked at: (file, the line, the line changed) -> why they may live."""

from __future__ import annotations

_GAIN = "gain = {} * power / ((1 - sigma) ** 2 * power + sigma**2 + eps)"
_CANCELS = "makes no difference: this factor is the same for all frequencies, and the division by the mean takes it out"
VERDICTS: dict[tuple[str, str, str], str] = {
    ("ralu_cache/temporal/seacache.py", _GAIN.format("(1 - sigma)"), _GAIN.format(changed)): _CANCELS
    for changed in ("( 0 - sigma)", "(1 + sigma)")
}
_NO_XFORMERS = "runs where xformers is installed alone: its tests are left out here"
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
}  # fmt: skip
