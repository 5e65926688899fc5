"""Profiles: what `ralu-cache tune` measured of a model, as data: settings, their front, the file, and where it lies.

Imports `plane`, `history` and `temporal`, and neither diffusers nor the engine; `api` chooses from a profile, `tune`
makes one.
"""
