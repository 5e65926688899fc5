"""What was said of survivors that were looked at: (file, the line, the line changed) -> why they may live."""

from __future__ import annotations

VERDICTS: dict[tuple[str, str, str], str] = {}
