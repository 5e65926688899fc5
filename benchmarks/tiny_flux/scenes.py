"""The scene grammar: what a prompt can say, and what it leaves to chance.

A scene is a background in one or two colours with one or two shapes on it. Whatever the prompt leaves open (exact
place, size, rotation, period, phase, the direction of plain "striped") is drawn at random, so that the images for one
prompt have real entropy and a sampler has work to do.
"""

from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (30, 150, 60),
    "cyan": (50, 205, 220),
    "blue": (35, 70, 205),
    "purple": (130, 45, 170),
    "pink": (250, 140, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart")
PLACES: dict[str, tuple[float, float]] = {
    "on the left": (-0.42, 0.0),
    "on the right": (0.42, 0.0),
    "in the center": (0.0, 0.0),
    "at the top": (0.0, -0.42),
    "at the bottom": (0.0, 0.42),
}
RADII = {"": (0.34, 0.58), "small ": (0.24, 0.34), "large ": (0.54, 0.70)}
STRIPES = {"hstripes": "horizontal ", "vstripes": "vertical ", "dstripes": "diagonal ", "stripes": ""}
BACKGROUND_WEIGHTS = {
    "solid": 1.2,
    "gradient": 1.0,
    "hstripes": 1.0,
    "vstripes": 1.0,
    "dstripes": 1.0,
    "stripes": 0.9,
    "checker": 1.3,
    "dots": 1.3,
}
GRAMMAR = "a an the on in at of and to with small large striped background"
PLACE_WORDS = "left right center top bottom"
BACKGROUND_WORDS = "plain gradient horizontal vertical diagonal checkered dotted"
WORDS = tuple(sorted({*f"{GRAMMAR} {PLACE_WORDS} {BACKGROUND_WORDS}".split(), *COLOURS, *SHAPES}))
"""Every word a prompt may use, in the order that the frozen tokenizers number them."""
TWO_SHAPE_SHARE = 0.22


@dataclass(frozen=True)
class Shape:
    """One foreground shape; centre and radius in [-1, 1] image coordinates, rotation in radians."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float
    rotation: float


@dataclass(frozen=True)
class Scene:
    """Everything that the renderer needs. `background` is solid, gradient, h/v/dstripes, checker or dots."""

    prompt: str
    background: str
    first: str
    second: str
    period: float
    phases: tuple[float, float]
    sign: int
    direction: int
    brightness: tuple[float, float, float]
    shapes: tuple[Shape, ...]


def background_text(background: str, first: str, second: str, say_plain: bool) -> str:
    """The prompt's words for a background of one (solid) or two colours."""
    if background == "solid":
        return f"a plain {first} background" if say_plain else f"a {first} background"
    if background == "gradient":
        return f"a {first} to {second} gradient background"
    if background == "checker":
        return f"a {first} and {second} checkered background"
    if background == "dots":
        return f"a {first} and {second} dotted background"
    return f"a {first} and {second} {STRIPES[background]}striped background"


def sample_scene(rng: np.random.Generator, two_shape_share: float = TWO_SHAPE_SHARE) -> Scene:
    """Draw one scene with its prompt. The same generator state always gives the same scene."""
    weights = np.array(list(BACKGROUND_WEIGHTS.values()))
    background = str(rng.choice(list(BACKGROUND_WEIGHTS), p=weights / weights.sum()))
    two_shapes = rng.random() < two_shape_share
    names = list(COLOURS)
    first, second, colour, other_colour = (names[i] for i in rng.permutation(len(names))[:4])
    say_plain = background == "solid" and rng.random() < 0.5
    text = background_text(background, first, second, say_plain)
    if background == "stripes":
        background = str(rng.choice(["hstripes", "vstripes", "dstripes"]))
    period, phases = rng.uniform(0.26, 0.5), (rng.uniform(0, 1), rng.uniform(0, 1))
    sign, direction = int(rng.choice([-1, 1])), int(rng.integers(4))
    bright = rng.uniform(0.93, 1.04, 3)
    if two_shapes:
        words, shapes = _two_shapes(rng, colour, other_colour)
    else:
        words, shapes = _one_shape(rng, colour)
    return Scene(
        prompt=f"{words} on {text}".replace("a orange", "an orange"),
        background=background,
        first=first,
        second=second,
        period=period,
        phases=phases,
        sign=sign,
        direction=direction,
        brightness=(bright[0], bright[1], bright[2]),
        shapes=shapes,
    )


def _two_shapes(rng: np.random.Generator, left: str, right: str) -> tuple[str, tuple[Shape, ...]]:
    """Two shapes side by side, named from left to right."""
    kinds = [str(rng.choice(SHAPES)), str(rng.choice(SHAPES))]
    shapes = []
    for kind, colour, x in zip(kinds, (left, right), (-0.46, 0.46), strict=True):
        x, y = x + rng.uniform(-0.06, 0.06), rng.uniform(-0.3, 0.3)
        shapes.append(Shape(kind, colour, x, y, rng.uniform(0.28, 0.40), rng.uniform(-0.3, 0.3)))
    return f"a {left} {kinds[0]} and a {right} {kinds[1]}", tuple(shapes)


def _one_shape(rng: np.random.Generator, colour: str) -> tuple[str, tuple[Shape, ...]]:
    """One shape with an optional size and an optional place."""
    kind = str(rng.choice(SHAPES))
    size = str(rng.choice(["", "", "small ", "large "]))
    # All three radii are drawn whatever the size is: the number of draws must not depend on their outcome.
    radius = {name: rng.uniform(*bounds) for name, bounds in RADII.items()}[size]
    place = ""
    if rng.random() < 0.55:
        name = str(rng.choice(list(PLACES)))
        x, y = _near(rng, name)
        place = f" {name}"
    else:
        limit = max(0.05, 0.95 - radius)
        x, y = np.clip([rng.uniform(-limit, limit), rng.uniform(-limit, limit)], -0.55, 0.55)
    limit = max(0.12, 0.98 - radius)
    x, y = float(np.clip(x, -limit, limit)), float(np.clip(y, -limit, limit))
    shape = Shape(kind, colour, x, y, radius, rng.uniform(-0.3, 0.3))
    return f"a {size}{colour} {kind}{place}", (shape,)


def _near(rng: np.random.Generator, place: str) -> tuple[float, float]:
    """A centre close to a named place."""
    x, y = PLACES[place]
    if place == "in the center":
        return x + rng.uniform(-0.06, 0.06), y + rng.uniform(-0.06, 0.06)
    along, across = rng.uniform(0.85, 1.2), rng.uniform(-0.15, 0.15)
    return (x * along, across) if y == 0 else (across, y * along)
