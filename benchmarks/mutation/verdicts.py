"""What was said of survivors that were looked at: (file, the line, the line changed) -> why they may live."""

from __future__ import annotations

_GAIN = "gain = {} * power / ((1 - sigma) ** 2 * power + sigma**2 + eps)"
_CANCELS = "makes no difference: this factor is the same for all frequencies, and the division by the mean takes it out"
VERDICTS: dict[tuple[str, str, str], str] = {
    ("ralu_cache/temporal/seacache.py", _GAIN.format("(1 - sigma)"), _GAIN.format(changed)): _CANCELS
    for changed in ("( 0 - sigma)", "(1 + sigma)")
}
