"""A family implements what it can: adapters/README.md run as it stands, and what a family lacks is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ralu_cache import RALU, Adaptive, accelerate
from ralu_cache.adapters import known_adapters, registry
from ralu_cache.adapters.parts import PARTS, parts_of
from ralu_cache.adapters.protocols import Adapter, Blocks, Tokens
from ralu_cache.info import describe
from tests.toy_family import ToyPipeline, make_toy_pipeline

ROOT = Path(__file__).parents[1]
README = ROOT / "adapters" / "README.md"
PLAN = RALU(steps=(2, 4, 4))


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[type[Adapter]]]:
    """Those that a test registers; nobody else sees them."""
    added: list[type[Adapter]] = []
    monkeypatch.setattr(registry, "_REGISTERED", added)
    return added


@pytest.fixture
def walked(families: list[type[Adapter]]) -> Mapping[str, Any]:
    """The names that the README's code leaves behind."""
    names: dict[str, Any] = {}
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)):
        exec(compile(code, f"{README.name}, block {number + 1}", "exec"), names)
    return names


def draw(pipe: ToyPipeline) -> Tensor:
    prompt = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    return pipe(prompt, generator=torch.Generator().manual_seed(0))


def test_the_walk_through_runs_as_it_stands(walked: Mapping[str, Any]) -> None:
    report = walked["handle"].report
    assert report.completed and [(stage.kind, stage.tokens) for stage in report.stages] == [
        ("coarse", 24), ("mixed", 45), ("fine", 96),
    ]  # fmt: skip
    assert sum(stage.reused for stage in report.stages) > 0 and report.flops < report.baseline_flops
    assert not walked["pipe"].transformer._forward_pre_hooks
    assert len(README.read_text().splitlines()) < 100


def test_the_walk_through_counts_what_pytorch_counts(walked: Mapping[str, Any]) -> None:
    pipe = make_toy_pipeline()
    calls: list[dict[str, Any]] = []
    pipe.transformer.register_forward_pre_hook(lambda net, args, call: calls.append(call), with_kwargs=True)
    draw(pipe)
    adapter = walked["ToyAdapter"](pipe.transformer)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pipe.transformer(**calls[0])
    assert counter.get_total_flops() == adapter.flops(calls[0])


def test_every_member_of_a_part_is_in_the_walk_throughs_table() -> None:
    text = README.read_text()
    for protocol, _ in PARTS.values():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{protocol.__name__}`"))
        if protocol.__name__ != "Layers":
            assert set(re.findall(r"`(\w+)`", row.rsplit("|", 2)[1])) == {n for n in vars(protocol) if n[0] != "_"}


def test_a_family_without_layers(walked: Mapping[str, Any]) -> None:
    pipe = make_toy_pipeline()
    with pytest.raises(ValueError, match="family toy, which lacks layers: its adapter ToyAdapter") as refused:
        accelerate(pipe, temporal="toca")
    assert "temporal='toca' is not supported" in str(refused.value)
    assert "what works with it: guidance=; spatial stages" in str(refused.value)
    assert "teacache, seacache, taylorseer" in str(refused.value) and "adaptive" not in str(refused.value)
    with pytest.raises(ValueError, match="lacks layers"):
        accelerate(pipe, temporal=Adaptive(ratio=0.5))
    with pytest.raises(ValueError, match=r"regions='text-attention' is not supported.*lacks text attention"):
        accelerate(pipe, spatial=RALU(regions="text-attention"))
    assert type(pipe) is ToyPipeline and not pipe.transformer._forward_pre_hooks
    for policy in ("teacache", "seacache", "taylorseer:2"):
        with accelerate(pipe, spatial=PLAN, temporal=policy, guidance="early"):
            assert draw(pipe).isfinite().all()
    with accelerate(pipe, speedup=2) as handle:
        draw(pipe)
    assert handle.report.flop_ratio >= 2


def partial_family(whole: type[Adapter], *lacking: type) -> type[Adapter]:
    """The README's family without some of its parts."""
    missing = {name for part in lacking for name in vars(part)}
    body = {name: value for name, value in vars(whole).items() if name not in missing and name[0] != "_"}
    bases = tuple(base for base in whole.__bases__ if base not in lacking)
    return type(f"Partial{whole.__name__}", bases, body)


def test_a_family_without_stages(walked: Mapping[str, Any], families: list[type[Adapter]]) -> None:
    families[:] = [partial_family(walked["ToyAdapter"], Tokens)]
    pipe = make_toy_pipeline()
    stock = draw(pipe)
    for option, value in (("spatial", "ralu"), ("spatial", "ralu-12x"), ("speedup", 3)):
        message = f"{option}={value!r} is not supported for the family toy, which lacks tokens"
        with pytest.raises(ValueError, match=f"{message}.*what works with it: guidance=; temporal"):
            accelerate(pipe, **{option: value})
    with pytest.raises(ValueError, match="lacks tokens"):
        accelerate(pipe, spatial=PLAN)
    with accelerate(pipe, temporal="taylorseer:2") as handle:
        assert not torch.equal(draw(pipe), stock)
    assert sum(stage.reused for stage in handle.report.stages) > 0
    assert torch.equal(draw(pipe), stock)


def test_a_family_without_blocks_and_cost(walked: Mapping[str, Any], families: list[type[Adapter]]) -> None:
    families[:] = [partial_family(walked["ToyAdapter"], Blocks, walked["Cost"])]
    pipe = make_toy_pipeline()
    with pytest.raises(ValueError, match=r"temporal='teacache' is not supported.*lacks blocks"):
        accelerate(pipe, temporal="teacache")
    with pytest.raises(ValueError, match=r"speedup=3 is not supported.*lacks cost"):
        accelerate(pipe, speedup=3)
    with accelerate(pipe, spatial=PLAN) as handle:
        draw(pipe)
    assert math.isnan(handle.report.flops) and handle.report.to_dict()["flops"] is None
    assert "unknown" in str(handle.report) and "nan" not in str(handle.report)


def test_an_adapter_that_forgets_a_member_names_it(walked: Mapping[str, Any]) -> None:
    body = {name: value for name, value in vars(walked["ToyAdapter"]).items() if name not in ("grid", "head")}
    with pytest.raises(TypeError, match=r"abstract methods '?grid'?, '?head'?"):
        type("Forgetful", walked["ToyAdapter"].__bases__, body)(make_toy_pipeline().transformer)


def test_info_says_who_implements_what() -> None:
    lines = [line.split(None, 1) for line in describe().splitlines() if line.startswith("  ")]
    for family in known_adapters():
        assert [family.family, ", ".join(parts_of(family))] in lines
    assert {family.family: len(parts_of(family)) for family in known_adapters()} == {
        "flux": 5, "sd3": 5, "qwen-image": 5, "wan": 4, "flux2": 5, "z-image": 4, "hunyuan-video-1.5": 5, "ltx": 3,
        "chroma": 5, "longcat-image": 5, "cogview4": 3,
        "qwen-image-2.1": 3,
    }  # fmt: skip
