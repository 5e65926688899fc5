"""Layouts and plans that several tests draw or walk through."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache.history.feature import Feature, Stamps
from ralu_cache.history.marks import Mark
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.temporal.policy import PolicyState, Situation


@st.composite
def layouts(draw: st.DrawFn) -> TokenLayout:
    batch, rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    count, patch = draw(st.integers(0, rows * columns)), draw(st.sampled_from([1, 2]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    refined = torch.zeros(batch, rows * columns, dtype=torch.bool)
    for sample in refined:
        sample[torch.randperm(rows * columns, generator=generator)[:count]] = True
    return TokenLayout(refined.view(batch, rows, columns), patch)


@st.composite
def chains(draw: st.DrawFn, length: int = 3) -> list[TokenLayout]:
    """Layouts of one plane, each with all cells refined that the one before it has, and perhaps more."""
    finest = draw(layouts())
    batch, rows, columns = finest.refined.shape
    order = torch.rand(
        batch, rows * columns, generator=torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    ).argsort(1)
    counts = sorted(draw(st.lists(st.integers(0, rows * columns), min_size=length, max_size=length)))
    rank = order.argsort(1).view(batch, rows, columns)
    return [TokenLayout(rank < count, finest.patch) for count in counts]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[TokenLayout, TokenLayout]:
    """Two unrelated layouts of one plane."""
    first = draw(layouts())
    batch, rows, columns = first.refined.shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    rank: Tensor = torch.rand(batch, rows * columns, generator=generator).argsort(1).view(batch, rows, columns)
    return first, TokenLayout(rank < draw(st.integers(0, rows * columns)), first.patch)


def situations(*stages: int) -> list[Situation]:
    """Every step of a plan of so many steps a stage; the level falls evenly in each stage, from 1 in the first one."""
    steps = sum(stages)
    return [
        Situation(
            step=sum(stages[:k]) + i, steps=steps, stage_step=i, stage_steps=count,
            ends_stage=i + 1 == count and k + 1 < len(stages), sigma=(1 - i / count) / (k + 1), stage=k,
        )
        for k, count in enumerate(stages)
        for i in range(count)
    ]  # fmt: skip


def emptied_at(feature: Feature | None, tokens: Tensor) -> Feature:
    """The feature with some tokens EMPTY, (B, n) bool."""
    assert feature is not None
    stamps = Stamps(
        feature.step.masked_fill(tokens, -1), feature.sigma.masked_fill(tokens, torch.nan),
        feature.mark.masked_fill(tokens, Mark.EMPTY),
    )  # fmt: skip
    return replace(feature, apart=stamps, known=None)


def told(plan: Sequence[Situation], batch: int, decided: list[Tensor]) -> Iterator[Situation]:
    """A branch's situations, each with its samples' ages: the caller appends to `decided` who reused, (B,) bool."""
    ages = (0,) * batch
    for situation in plan:
        yield replace(situation, ages=ages)
        ages = tuple(age + 1 if reused else 0 for age, reused in zip(ages, decided[-1].tolist(), strict=True))


def decisions(state: PolicyState, batch: int, plan: Sequence[Situation]) -> Tensor:
    """(steps, B) bool: who reuses, by a policy that looks at no signal, where all may."""
    found: list[Tensor] = []
    for situation in told(plan, batch, found):
        found.append(state.decide(situation, None, None, torch.ones(batch, dtype=torch.bool)).reuse)
    return torch.stack(found)
