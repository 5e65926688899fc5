"""Moving scenes: a shape over a background, what a prompt says about it, and its frames.

Colours, shapes and backgrounds are tiny FLUX's. Whatever the prompt leaves open (where the path lies, how long it is,
the size, the stripes' period) is drawn at random.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.tiny_flux.render import render
from benchmarks.tiny_flux.scenes import COLOURS, WORDS, Scene, Shape, background_text

FRAMES, SIZE = 9, 64
PATH_FRAMES = 13  # in which a shape goes its whole path; a clip shows the beginning
SHAPES = ("circle", "square", "triangle", "ring", "cross")
DIRECTIONS: dict[str, tuple[int, int]] = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
}
GROWTH = {"growing": 1, "shrinking": -1}
MOTIONS = (*DIRECTIONS, *GROWTH, "standing still")
NEW_WORDS = tuple(sorted({word for motion in MOTIONS for word in motion.split()} - set(WORDS)))
"""What the prompts may say beside tiny FLUX's words, in the order that the tokenizer numbers them."""
BACKGROUNDS = {"solid": 0.5, "gradient": 0.25, "hstripes": 0.125, "vstripes": 0.125}
RADII, SMALL, LARGE = (0.32, 0.48), (0.20, 0.28), (0.52, 0.64)
TRAVEL = (0.75, 1.05)
MARGIN = 0.98

Video = NDArray[np.uint8]  # (frames, Y, X, 3)


@dataclass(frozen=True)
class Clip:
    """A prompt and what it moves: the shape at both ends of its path, which it goes at even speed."""

    prompt: str
    scene: Scene
    start: Shape
    end: Shape

    def frames(self, count: int = FRAMES, size: int = SIZE) -> Video:
        """The rendered frames (count, size, size, 3)."""
        return np.stack([render(self.at(place), size) for place in np.arange(count) / (PATH_FRAMES - 1)])

    def at(self, place: float) -> Scene:
        """The scene at this share of the path."""
        blend = {
            name: (1 - place) * getattr(self.start, name) + place * getattr(self.end, name)
            for name in ("x", "y", "radius")
        }
        return replace(self.scene, shapes=(replace(self.start, **blend),))


def sample_clip(rng: np.random.Generator) -> Clip:
    """Draw one clip with its prompt. The same generator state always gives the same clip."""
    background = str(rng.choice(list(BACKGROUNDS), p=list(BACKGROUNDS.values())))
    names = list(COLOURS)
    first, second, colour = (names[index] for index in rng.permutation(len(names))[:3])
    kind, motion = str(rng.choice(SHAPES)), str(rng.choice(MOTIONS))
    start, end = _path(rng, kind, colour, motion)
    prompt = f"a {colour} {kind} {motion} on {background_text(background, first, second, False)}"
    bright = rng.uniform(0.95, 1.03, 3)
    scene = Scene(
        prompt=prompt.replace("a orange", "an orange"),
        background=background,
        first=first,
        second=second,
        period=rng.uniform(0.4, 0.6),
        phases=(rng.uniform(0, 1), rng.uniform(0, 1)),
        sign=int(rng.choice([-1, 1])),
        direction=int(rng.integers(2)),
        brightness=(bright[0], bright[1], bright[2]),
        shapes=(),
    )
    return Clip(scene.prompt, scene, start, end)


def _path(rng: np.random.Generator, kind: str, colour: str, motion: str) -> tuple[Shape, Shape]:
    """The shape at both ends; it never leaves the picture."""
    radius, rotation = rng.uniform(*RADII), rng.uniform(-0.1, 0.1)
    if motion in GROWTH:
        small, large = rng.uniform(*SMALL), rng.uniform(*LARGE)
        limit = MARGIN - large
        x, y = rng.uniform(-limit, limit, 2)
        ends = [Shape(kind, colour, x, y, size, rotation) for size in (small, large)]
        return (ends[0], ends[1]) if motion == "growing" else (ends[1], ends[0])
    limit = MARGIN - radius
    x, y = rng.uniform(-limit, limit, 2)
    shape = Shape(kind, colour, x, y, radius, rotation)
    if motion not in DIRECTIONS:
        return shape, shape
    across, down = DIRECTIONS[motion]
    travel = min(rng.uniform(*TRAVEL), 2 * limit)
    middle = rng.uniform(-1, 1) * (limit - travel / 2)
    if across:
        return replace(shape, x=middle - across * travel / 2), replace(shape, x=middle + across * travel / 2)
    return replace(shape, y=middle - down * travel / 2), replace(shape, y=middle + down * travel / 2)
