"""What is saved names stock classes; what is copied is as the original; what is shared stays stock."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ralu_cache import RALU, Report, accelerate
from tests import surroundings
from tests.surroundings import (
    CLOSE,
    FAMILIES,
    POLICIES,
    Family,
    Setting,
    bystander,
    check_accelerated,
    draw,
    each_family,
    entering,
    fast,
    few,
    forward,
    looking,
    stock,
    stock_forward,
)

one_thread = surroundings.one_thread

SIBLINGS = {
    "flux img2img": diffusers.FluxImg2ImgPipeline,
    "sd3 img2img": diffusers.StableDiffusion3Img2ImgPipeline,
    "qwen img2img": diffusers.QwenImageImg2ImgPipeline,
}
each_sibling = pytest.mark.parametrize("kind", SIBLINGS)


# ---- saved


@each_family
def test_a_pipeline_saved_while_accelerated(family: Family, tmp_path: Path) -> None:
    family.make().save_pretrained(tmp_path / "stock")
    pipe = family.make()
    with accelerate(pipe, **Setting(family, "toca", True).options):
        pipe.save_pretrained(tmp_path / "ours")
        family.run(pipe)
        pipe.save_pretrained(tmp_path / "after a call")
        pipe.scheduler.save_pretrained(tmp_path / "scheduler")
        pipe.transformer.save_pretrained(tmp_path / "model")
    wanted = {path.relative_to(tmp_path / "stock") for path in (tmp_path / "stock").rglob("*")}
    for folder in ("ours", "after a call"):
        assert {path.relative_to(tmp_path / folder) for path in (tmp_path / folder).rglob("*")} == wanted
        for name in wanted:
            if name.suffix == ".json":
                assert (tmp_path / folder / name).read_text() == (tmp_path / "stock" / name).read_text()
    for file in tmp_path.rglob("*.json"):
        assert "ralu" not in file.read_text().lower()
    absent = {name: None for name, part in pipe.components.items() if part is None}
    loaded = type(pipe).from_pretrained(tmp_path / "ours", **absent)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(family.run(loaded), stock(family.name), atol=CLOSE, rtol=CLOSE)  # other addresses
    assert type(loaded.scheduler) is FlowMatchEulerDiscreteScheduler
    assert type(pipe.transformer).from_pretrained(tmp_path / "model").state_dict().keys() == (
        family.make().transformer.state_dict().keys()
    )


@each_family
def test_components_are_the_users_own(family: Family) -> None:
    pipe = family.make()
    before = dict(pipe.components)
    within: list[dict[str, Any]] = []
    with accelerate(pipe, **Setting(family, "toca", True).options):
        family.run(pipe, callback_on_step_end=looking(lambda: within.append(dict(pipe.components))))
        assert list(pipe.components) == list(before) == list(within[0])
        assert [pipe.components[name] is value for name, value in before.items()] == [True] * len(before)
        assert str(pipe).splitlines()[0] == str(family.make()).splitlines()[0]


# ---- made from an accelerated one


@each_sibling
def test_a_pipeline_made_from_an_accelerated_one_is_stock(kind: str) -> None:
    family, stock_make, _ = surroundings.ENTERING[kind]
    expected = draw(stock_make(), entering(kind, stock_make(), 0.7))
    pipe = FAMILIES[family].make()
    with accelerate(pipe, **(setting := Setting(FAMILIES[family], "toca", True)).options):
        assert torch.equal(FAMILIES[family].run(pipe), fast(setting))
        for make in (SIBLINGS[kind].from_pipe, diffusers.AutoPipelineForImage2Image.from_pipe):
            other = make(pipe)
            other.set_progress_bar_config(disable=True)
            assert type(other) is SIBLINGS[kind] and type(other.scheduler) is FlowMatchEulerDiscreteScheduler
            given = entering(kind, other, 0.7)
            assert torch.equal(draw(other, given), expected)
        back = type(FAMILIES[family].make()).from_pipe(other)
        back.set_progress_bar_config(disable=True)
        assert torch.equal(FAMILIES[family].run(back), stock(family))
        assert torch.equal(FAMILIES[family].run(pipe), fast(setting))
    assert torch.equal(draw(other, given), expected)


@each_sibling
def test_accelerating_a_sibling_leaves_the_first_alone(kind: str) -> None:
    name, stock_make, _ = surroundings.ENTERING[kind]
    family = FAMILIES[name]
    expected = draw(stock_make(), entering(kind, stock_make(), 0.7))
    pipe = family.make()
    other = SIBLINGS[kind].from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    given = entering(kind, other, 0.7)
    with accelerate(other, temporal=POLICIES["taylorseer"]):
        second = draw(other, given)
    assert not torch.equal(second, expected)
    first_handle = accelerate(pipe, **(setting := Setting(family, "toca", True)).options)
    with accelerate(other, temporal=POLICIES["taylorseer"]):
        assert torch.equal(family.run(pipe), fast(setting))
        assert torch.equal(draw(other, given), second)
        assert torch.equal(family.run(pipe), fast(setting))
    assert torch.equal(family.run(pipe), fast(setting)) and first_handle.enabled
    assert torch.equal(draw(other, given), expected)
    first_handle.disable()
    assert torch.equal(family.run(pipe), stock(name))


# ---- copied


def duplicate(setting: Setting, thing: Any) -> Any:
    """A deep copy for one half of the settings, a pickle's for the other."""
    return copy.deepcopy(thing) if setting.odd else pickle.loads(pickle.dumps(thing))


@few
def test_a_deep_copy_or_a_pickle_is_accelerated(setting: Setting) -> None:
    family = setting.family
    pipe = family.make()
    handle = accelerate(pipe, **setting.options)
    expected = family.run(pipe)
    assert not torch.equal(expected, stock(family.name))
    report = handle.report
    other = duplicate(setting, pipe)
    handle.disable()
    assert other.transformer is not pipe.transformer and isinstance(other, type(pipe))
    assert torch.equal(family.run(other), expected)
    assert handle.report is report, "the copy's runs are not the original's"
    with accelerate(other, **setting.options) as again:
        assert torch.equal(family.run(other), expected)
        check_accelerated(setting, again.report)
    assert torch.equal(family.run(other), stock(family.name)) and type(other) is type(pipe)
    assert torch.equal(family.run(pipe), stock(family.name))


@each_family
def test_a_shallow_copy_and_its_original_have_lives_of_their_own(family: Family) -> None:
    pipe = family.make()
    setting = Setting(family, "toca", True)
    second = fast(Setting(family, "taylorseer", False))
    handle = accelerate(pipe, **setting.options)
    assert torch.equal(family.run(pipe), fast(setting))
    other = copy.copy(pipe)
    other_handle = accelerate(other, temporal=POLICIES["taylorseer"])
    assert torch.equal(family.run(other), second) and torch.equal(family.run(pipe), fast(setting))
    other_handle.disable()
    assert torch.equal(family.run(other), stock(family.name)) and torch.equal(family.run(pipe), fast(setting))
    other_handle = accelerate(other, temporal=POLICIES["taylorseer"])
    handle.disable()
    assert torch.equal(family.run(other), second) and torch.equal(family.run(pipe), stock(family.name))


@few
def test_copies_of_the_parts_are_stock(setting: Setting) -> None:
    family = setting.family
    pipe = family.make()
    with accelerate(pipe, **setting.options):
        assert torch.equal(family.run(pipe), fast(setting))
        parts = {name: duplicate(setting, pipe.components[name]) for name in ("scheduler", "transformer")}
        assert type(parts["scheduler"]) is FlowMatchEulerDiscreteScheduler
        assert torch.equal(forward(family, parts["transformer"]), stock_forward(family.name))
        other = bystander(family.make())
        for name, part in parts.items():
            setattr(other, name, part)
        assert torch.equal(family.run(other), stock(family.name))
        assert torch.equal(family.run(pipe), fast(setting))
    assert torch.equal(family.run(other), stock(family.name))


def test_settings_and_reports_are_copied() -> None:
    for thing in (*POLICIES.values(), RALU(split=(3, 3, 3), regions="sobel"), RALU.preset("ralu-4x")):
        assert copy.deepcopy(thing) == thing and pickle.loads(pickle.dumps(thing)) == thing
    family = FAMILIES["flux"]
    pipe = family.make()
    with accelerate(pipe, **Setting(family, "toca", True).options) as handle:
        family.run(pipe)
        for report in (copy.deepcopy(handle.report), pickle.loads(pickle.dumps(handle.report))):
            assert isinstance(report, Report) and report.to_dict() == handle.report.to_dict()
