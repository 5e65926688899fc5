"""Families, policies and stages in all surroundings: every pair of choices meets in some cell.

In every cell the call runs and its picture is finite; meanwhile, and once it is off, the others' pictures are stock.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from diffusers.callbacks import SD3CFGCutoffCallback
from torch import Tensor

from ralu_cache import accelerate
from tests import surroundings
from tests.pairwise import covering, pairs
from tests.surroundings import (
    ENTERING,
    FAMILIES,
    LATER,
    OFFLOADS,
    POLICIES,
    Setting,
    add_lora,
    at,
    bystander,
    check_accelerated,
    draw,
    entering,
    served,
    together,
)

one_thread = surroundings.one_thread


@dataclass(frozen=True)
class Cell:
    family: str
    policy: str
    stages: str
    batch: int
    branches: str
    offload: str
    lora: str
    thread: str
    inference: str
    strength: str
    callback: str

    def __str__(self) -> str:
        return "-".join(str(getattr(self, field.name)).replace(" ", "_") for field in fields(self))


CHOICES: dict[str, list[Any]] = {
    "family": [*FAMILIES, *LATER],
    "policy": [*POLICIES, "no policy"],
    "stages": ["stages", "alone"],
    "batch": [1, 2],
    "branches": ["unguided", "guided"],
    "offload": ["resident", "submodules", "model"],
    "lora": ["no lora", "lora before", "lora after"],
    "thread": ["alone", "beside another", "in several"],
    "inference": ["plain", "inference mode"],
    "strength": ["from noise", "from a picture"],
    "callback": ["no callback", "changing", "nesting", "official"],
}


def possible(**has: Any) -> bool:
    """Of the choices made so far: whether such a call exists, and its parts go together in stock diffusers."""
    official = has.get("callback") == "official"
    away = has.get("offload", "resident") != "resident"
    family = has.get("family")
    if family in LATER and (
        has.get("strength") == "from a picture"
        or has.get("policy", "toca") not in ("teacache", "toca", "adaptive")
        or (family in ("longcat", "hunyuan") and has.get("callback", "no callback") != "no callback")  # takes none
        or (family == "ltx" and (has.get("stages") == "stages" or away))  # and no autoencoder here
    ):
        return False
    return not (
        (has.get("policy") == "no policy" and has.get("stages") == "alone")
        or (has.get("family") == "wan" and has.get("strength") == "from a picture")
        or (official and has.get("family", "sd3") != "sd3")
        or (official and has.get("strength") == "from a picture")  # whose callbacks have no pooled prompt
        or (official and has.get("batch", 1) == 2)  # it keeps the last prompt
        or (official and has.get("branches", "guided") != "guided")
        or (away and has.get("thread", "alone") != "alone")  # weights come and go for one call at a time
        or (away and has.get("lora") == "lora after")  # new layers are on the host, and nothing moves them
    )


CELLS = [Cell(**row) for row in covering(CHOICES, possible)]


def test_choices_meet() -> None:
    """A few pairs that are easily lost, and no impossible cell."""
    met = set().union(*(pairs(vars(cell)) for cell in CELLS))
    for pair in (
        {"callback": "official", "policy": "adaptive"}, {"strength": "from a picture", "thread": "in several"},
        {"offload": "submodules", "inference": "inference mode"}, {"lora": "lora after", "policy": "toca"},
        {"family": "wan", "callback": "nesting"},
    ):  # fmt: skip
        assert pairs(pair) <= met
    assert all(possible(**vars(cell)) for cell in CELLS) and len(CELLS) < 80


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, id=str(cell), marks=[pytest.mark.slow] * (cell.family in LATER and cell.policy == "toca"))
        for cell in CELLS
    ],
)
def test_in_all_surroundings(cell: Cell) -> None:
    family = (FAMILIES | LATER)[cell.family]
    setting = Setting(family, "none" if cell.policy == "no policy" else cell.policy, cell.stages == "stages")
    samples, guided = range(cell.batch), cell.branches == "guided"
    if cell.strength == "from a picture":
        kind = f"{cell.family} img2img"
        pipe = ENTERING[kind][1]()
        given = entering(kind, pipe, 0.8, samples, guided)
    else:
        pipe, given = family.make(), family.arguments(samples, guided)
    other = bystander(pipe)
    if cell.lora == "lora before":
        add_lora(pipe)
    if cell.offload != "resident":
        OFFLOADS[cell.offload](pipe)
    before = draw(pipe, given)
    nested: list[Tensor] = []

    def change(pipe: Any, tensors: dict[str, Any]) -> None:
        tensors["latents"] = 0.9 * tensors["latents"]

    def nest(pipe: Any, tensors: dict[str, Any]) -> None:
        nested.append(draw(bystander(pipe), given))  # one for each thread: stock pipelines are not safe in several

    more = {
        "no callback": {},
        "changing": {"callback_on_step_end": at(3, change)},
        "nesting": {"callback_on_step_end": at(3, nest)},
        "official": {"callback_on_step_end": SD3CFGCutoffCallback(cutoff_step_ratio=0.4)},
    }[cell.callback]
    mode = torch.inference_mode if cell.inference == "inference mode" else contextlib.nullcontext

    def fast() -> Tensor:
        with mode():
            return draw(pipe, given | more).clone()

    with accelerate(pipe, **setting.options) as handle:
        if cell.lora == "lora after":
            add_lora(pipe)
        found = fast()
        report = handle.report
        if cell.strength == "from noise":
            check_accelerated(setting, report)
        else:
            assert report.completed and (setting.stages or served(report))
        assert found.isfinite().all() and found.shape == before.shape and not torch.equal(found, before)
        if cell.thread == "beside another":
            again, meanwhile = together(fast, lambda: draw(other, given))
        elif cell.thread == "in several":
            again, same, meanwhile = together(fast, fast, lambda: draw(other, given))
            assert torch.equal(same, found)
        else:
            again, meanwhile = fast(), draw(other, given)
        assert torch.equal(again, found)
    after = draw(pipe, given)
    assert cell.lora == "lora after" or torch.equal(after, before)
    for picture in (meanwhile, *nested):
        assert torch.equal(picture, after), "the other pipeline is stock meanwhile"
    assert len(nested) == (cell.callback == "nesting") * (3 if cell.thread == "in several" else 2)
