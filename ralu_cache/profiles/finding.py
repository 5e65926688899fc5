"""Where a model's profile lies: beside its files, in the user's cache folder, or in the library, of embedded models."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from ralu_cache.profiles.facts import Model
from ralu_cache.profiles.profile import Profile, read_profile
from ralu_cache.temporal.coefficients import file_beside, model_folder

LIBRARY = Path(str(files("ralu_cache")))
FILE = "ralu-cache.json"
"""Its name beside a model."""


def cache_folder() -> Path:
    """The user's: `RALU_CACHE_HOME`, else ralu-cache in `XDG_CACHE_HOME`, else in ~/.cache."""
    own, common = os.environ.get("RALU_CACHE_HOME"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(common) if common else Path.home() / ".cache") / "ralu-cache"


def cached_file(model: Model) -> Path:
    return cache_folder() / "profiles" / f"{model.pipeline}-{model.config}.json"


def shipped_file(model: Model) -> Path:
    """Of the library's own profiles, made by `benchmarks.tune.ship`; there for the embedded models of pictures."""
    return LIBRARY / "profiles" / f"{model.pipeline}-{model.config}.json"


def place_for(pipe: Any) -> Path:
    """Where a new profile goes: beside the model's files if it lies in a folder that can be written to, else (and for
    a model that is part of this library) into the user's cache folder."""
    try:
        folder = model_folder(pipe.transformer)
    except ValueError:
        return cached_file(Model.of(pipe))
    ours = folder.resolve().is_relative_to(LIBRARY.resolve())
    return cached_file(Model.of(pipe)) if ours else folder / FILE


def find_profiles(pipe: Any) -> list[tuple[Path, Profile]]:
    """Those of this very model, the first to be asked first: beside it, then in the cache folder, then the library's.

    Raises ValueError, with the path and why, for a file that is no profile.
    """
    model = Model.of(pipe)
    places = [file_beside(pipe.transformer, FILE), cached_file(model), shipped_file(model)]
    found = [(path, read_profile(path)) for path in dict.fromkeys(places) if path is not None and path.is_file()]
    return [(path, profile) for path, profile in found if profile.model == model]
