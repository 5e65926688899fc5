"""Grids: what a sweep runs, from flags and files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache.sweep.grid import Grid, grid_from
from ralu_cache.sweep.records import Setting

NAMES = st.sampled_from(["none", "ralu-4x", "ralu-5x", "ralu-7x"])
POLICIES = st.sampled_from(["none", "teacache", "seacache", "seacache:0.5", "taylorseer:2,first=1"])


@given(
    spatial=st.lists(NAMES, max_size=4), temporal=st.lists(POLICIES, max_size=4),
    thresholds=st.lists(st.sampled_from([2, 3, 4]), max_size=3), plain=st.lists(st.integers(1, 50), max_size=3),
    steps=st.lists(st.integers(1, 50), min_size=1, max_size=2),
)  # fmt: skip
def test_settings_are_those_of_the_grid_each_once(
    spatial: list[str], temporal: list[str], thresholds: list[int], plain: list[int], steps: list[int]
) -> None:
    grid = Grid(
        tuple(spatial), tuple(temporal), tuple(thresholds), steps=tuple(steps), plain_steps=tuple(plain),
        prompts=("a red circle",),
    )  # fmt: skip
    settings = grid.settings()
    assert len(set(settings)) == len(settings) and settings[0].method == "none"
    methods = {setting.method for setting in settings}
    assert {f"steps:{n}" for n in plain} <= methods
    assert bool(set(spatial) - {"none"} <= methods) or (temporal and "none" not in temporal)
    for policy in set(temporal) - {"none"}:
        named = [policy] if ":" in policy or not thresholds else [f"{policy}:{value}" for value in thresholds]
        for place in set(spatial) or {"none"}:
            assert {f"{'' if place == 'none' else place}+{text}" for text in named} <= methods
    assert {setting.steps for setting in settings} == set(steps)


def test_guidance_is_a_third_dimension() -> None:
    grid = Grid(("none", "ralu-4x"), ("none", "seacache"), prompts=("a",), guidance=("none", "early"))
    assert grid.all_methods() == [
        "none", "+guidance=early", "+seacache", "+seacache+guidance=early",
        "ralu-4x", "ralu-4x+guidance=early", "ralu-4x+seacache", "ralu-4x+seacache+guidance=early",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="unknown guidance 'late'"):
        Grid(prompts=("a",), guidance=("late",))


@given(prompts=st.integers(1, 9), seeds=st.integers(1, 4), batch=st.integers(1, 7))
def test_batches_hold_every_prompt_with_every_seed_once(prompts: int, seeds: int, batch: int) -> None:
    grid = Grid(prompts=tuple(f"prompt {i}" for i in range(prompts)), seeds=tuple(range(seeds)), batch=batch)
    batches = grid.batches()
    pairs = [pair for b in batches for pair in zip(b.prompts, b.seeds, strict=True)]
    assert len(pairs) == len(set(pairs)) == prompts * seeds
    assert all(len(b.prompts) == batch for b in batches[:-1]) and 1 <= len(batches[-1].prompts) <= batch


def test_prompts_and_seeds_named_twice_run_once() -> None:
    grid = Grid(prompts=("a", "b", "a"), seeds=(0, 0), batch=1)
    assert [(b.prompts, b.seeds) for b in grid.batches()] == [(("a",), (0,)), (("b",), (0,))]


def test_a_file_and_options_on_top_of_it(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  a blue star \n")
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"spatial: [none, ralu-4x]\nsteps: 28\nsizes: [128x64]\nseeds: [1, 2]\nprompts: {tmp_path}/prompts.txt\n"
    )
    grid = grid_from({"seeds": [3]}, file)
    assert grid == Grid(
        spatial=("none", "ralu-4x"),
        steps=(28,),
        sizes=((128, 64),),
        seeds=(3,),
        prompts=("a red circle", "a blue star"),
    )
    assert grid.settings() == [Setting("none", 28, 128, 64), Setting("ralu-4x", 28, 128, 64)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacial": ["ralu-4x"]}, "unknown option 'spacial' of a sweep; accepted: spatial, temporal"),
        ({"spatial": ["ralu-9x"]}, "unknown spatial method 'ralu-9x'"),
        ({"temporal": ["tea"]}, "unknown temporal policy 'tea'"),
        ({"methods": ["steps:many"]}, "method 'steps:many': steps must be a positive number"),
        ({"sizes": ["128"]}, "sizes are written HEIGHTxWIDTH in pixels, such as 1024x768, got '128'"),
        ({"steps": [2.5]}, "steps must be whole numbers, got 2.5"),
        ({"steps": ["x"]}, "steps must be whole numbers, got 'x'"),
        ({"thresholds": [float("nan")]}, "thresholds must be numbers, got nan"),
        ({"plain_steps": [0]}, "plain_steps must be positive, got 0"),
        ({"batch": 0}, "batch must be positive, got 0"),
        ({"seeds": []}, "seeds must name at least one"),
        ({"prompts": []}, "prompts must name at least one"),
    ],
)
def test_what_cannot_be_run_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_from({"prompts": ["a red circle"], **options})


def test_a_file_without_options_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("- ralu-4x\n")
    with pytest.raises(ValueError, match="must hold options by name"):
        grid_from({}, file)
