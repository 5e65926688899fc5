"""Prompts are read back to what the grammar put into them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tiny_flux import scenes
from ralu_cache.quality.scene_prompts import ATTRIBUTES, COLOURS, SHAPES, read_prompt

PATTERNS = {
    "solid": ("plain", ""),
    "gradient": ("gradient", ""),
    "checker": ("checkered", ""),
    "dots": ("dotted", ""),
    "hstripes": ("striped", "horizontal"),
    "vstripes": ("striped", "vertical"),
    "dstripes": ("striped", "diagonal"),
}
"""What the prompt calls the grammar's backgrounds, and which direction it may name."""


def test_the_vocabulary_is_the_grammars() -> None:
    assert tuple(scenes.COLOURS) == COLOURS
    assert scenes.SHAPES == SHAPES


@given(seed=st.integers(0, 2**32 - 1), two=st.booleans())
def test_reading_inverts_the_grammar(seed: int, two: bool) -> None:
    scene = scenes.sample_scene(np.random.default_rng(seed), two_shape_share=float(two))
    statement = read_prompt(scene.prompt)
    assert list(statement) == [name for name in ATTRIBUTES if name in statement]
    assert all(set(classes) <= set(ATTRIBUTES[name]) for name, classes in statement.items())

    said = {name: classes[0] for name, classes in statement.items() if name != "background colours"}
    pattern, direction = PATTERNS[scene.background]
    colours = {scene.first} if scene.background == "solid" else {scene.first, scene.second}
    first, *others = scene.shapes
    assert said["count"] == ("two" if two else "one")
    assert (said["shape"], said["colour"]) == (first.kind, first.colour)
    assert [(said.get("second shape"), said.get("second colour"))] == (
        [(other.kind, other.colour) for other in others] or [(None, None)]
    )
    assert said["background"] == pattern
    assert said.get("direction") == (direction if direction in scene.prompt.split() else None)
    assert set(statement["background colours"]) == colours
    assert said.get("size") == next((word for word in ("small", "large") if word in scene.prompt.split()), None)
    places = [place for place in scenes.PLACES if place in scene.prompt]
    assert said.get("place") == (places[0].split()[-1] if places else None)


def test_what_is_left_open_is_not_stated() -> None:
    assert read_prompt("A Red  circle on a blue and white striped background ") == {
        "count": ("one",),
        "shape": ("circle",),
        "colour": ("red",),
        "background": ("striped",),
        "background colours": ("blue", "white"),
    }


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red fox in the snow",
        "a red circle",
        "a crimson circle on a blue background",
        "a red circle on a blue background and more",
        "a small red circle and a blue star on a white background",
        "a red circle on a blue to white striped background",
    ],
)
def test_other_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"is not a scene of the embedded model; accepted"):
        read_prompt(prompt)
