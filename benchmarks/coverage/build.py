"""A tiny random pipeline of any class that diffusers exports, by what its constructor asks for."""

from __future__ import annotations

import enum
import fnmatch
import functools
import inspect
import operator
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

from benchmarks.coverage.recipes import ABSTRACT, COMPONENTS, LEFT_OUT, PIPELINES, WANTED
from benchmarks.coverage.shrink import shrunk
from benchmarks.coverage.text import Processor, make_encoder, make_tokenizer

Missing = inspect.Parameter.empty


class Unbuilt(Exception):
    """A component that could not be made; says which and why."""


def pipeline_classes() -> dict[str, type[DiffusionPipeline]]:
    """The pipelines that diffusers exports, by name; those that need a package that isn't there are left out."""
    found = {}
    for name in sorted(dir(diffusers)):
        if "Pipeline" not in name or name.startswith("Auto"):
            continue
        value = getattr(diffusers, name)
        if isinstance(value, type) and issubclass(value, DiffusionPipeline) and value is not DiffusionPipeline:
            found[name] = value
    return found


def build(name: str, **sizes: Mapping[str, Any]) -> Any:
    """A tiny random pipeline of that class; `sizes` go before the recipes', by the name of the component.

    Raises Unbuilt naming the component that could not be made.
    """
    stock = getattr(diffusers, name)
    recipe = recipe_of(name)
    recipe = {**recipe, **{part: {**recipe.get(part, {}), **given} for part, given in sizes.items()}}
    parts: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part, parameter in _parameters(stock).items():
            value = _part(part, parameter, recipe.get(part, Missing), part in recipe, recipe)
            if value is not Missing:
                parts[part] = value
    pipe = stock(**parts)
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    return pipe


def _parameters(stock: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters; annotations that stand as text name what the module knows under it."""
    known = vars(sys.modules[stock.__module__])
    found = {}
    for name, parameter in inspect.signature(stock.__init__).parameters.items():
        if name == "self":
            continue
        if isinstance(parameter.annotation, str):
            words = [word.strip() for word in parameter.annotation.split("|")]
            classes = [known.get(word) or getattr(transformers, word, None) for word in words]
            kept = tuple(cls for cls in classes if isinstance(cls, type))
            parameter = parameter.replace(annotation=functools.reduce(operator.or_, kept) if kept else Missing)
        found[name] = parameter
    return found


def recipe_of(name: str) -> dict[str, Any]:
    """What the recipes say of a pipeline's components, the later the stronger."""
    found: dict[str, Any] = {}
    for pattern, parts in PIPELINES.items():
        if fnmatch.fnmatchcase(name, pattern):
            for part, given in parts.items():
                known = found.get(part)
                found[part] = {**known, **given} if isinstance(known, dict) and isinstance(given, dict) else given
    return found


def denoisers(pipe: Any) -> dict[str, Any]:
    """The models that a pipeline's loop calls, by the name of their attribute."""
    found = {}
    for name in ("transformer", "transformer_2", "unet", "prior", "decoder", "image_unet", "unconditional_transformer"):
        module = getattr(pipe, name, None)
        if isinstance(module, torch.nn.Module):
            found[name] = module
    return {name: module for name, module in found.items() if name != "prior" or len(found) == 1}


def _part(part: str, parameter: inspect.Parameter, given: Any, said: bool, recipe: Mapping[str, Any]) -> Any:
    """One component; Missing where the default is to stand."""
    if said and not isinstance(given, dict):
        return given() if callable(given) else given
    if part in LEFT_OUT and not said:
        return None if parameter.default is Missing else Missing
    if part == "requires_safety_checker":
        return False
    if parameter.default is not Missing and not said and part not in WANTED:
        return Missing
    sizes = dict(given) if said else {}
    cls = sizes.pop("class", None)
    if isinstance(cls, str):
        cls = getattr(diffusers, cls, None) or getattr(transformers, cls)
    choices = [cls] if cls is not None else [*_classes(parameter.annotation)]
    for choice in choices:
        try:
            return _component(part, choice, sizes)
        except Exception as error:
            reason = f"{part}: {getattr(choice, '__name__', choice)}: {type(error).__name__}: {str(error)[:200]}"
    if not choices:
        reason = f"{part}: nothing says what it is ({parameter.annotation})"
    raise Unbuilt(reason)


def _classes(annotation: Any) -> Iterator[Any]:
    """The classes in an annotation, unions taken apart."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        if annotation is not type(None):
            yield annotation
    else:
        for part in typing.get_args(annotation):
            yield from _classes(part)


def _component(part: str, cls: Any, sizes: Mapping[str, Any]) -> Any:
    name = cls.__name__
    if name in ABSTRACT:
        known = ABSTRACT[name]
        return _component(part, getattr(diffusers, known, None) or getattr(transformers, known), sizes)
    if issubclass(cls, enum.Enum):
        return diffusers.DDIMScheduler(**sizes)
    if issubclass(cls, SchedulerMixin):
        return cls(**{**COMPONENTS.get(name, {}), **sizes})
    if issubclass(cls, transformers.PreTrainedModel):
        return make_encoder(cls, {**COMPONENTS.get(name, {}), **sizes})
    if issubclass(cls, transformers.ProcessorMixin) or name in ("AutoProcessor", "Siglip2ImageProcessorPil"):
        return Processor()
    if "Tokenizer" in name or issubclass(cls, transformers.PreTrainedTokenizerBase):
        return make_tokenizer()
    if "Siglip" in name and "ImageProcessor" in name:
        return cls(size={"height": 32, "width": 32})
    if "ImageProcessor" in name or "FeatureExtractor" in name:
        return cls(size=32, crop_size=32) if "CLIP" in name else cls()
    if issubclass(cls, ModelMixin):
        return cls(**shrunk(cls, {**COMPONENTS.get(name, {}), **sizes})).float()
    return cls(**sizes)
