"""What a run did: the record as plain data, its text, its figures, and what models cost in floating point operations.

Imports `plane`, `history` and `temporal` at most; never `engine`, an adapter or diffusers.
"""

from ralu_cache.report.record import Report

__all__ = ["Report"]
