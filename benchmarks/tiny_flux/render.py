"""Analytically antialiased renderer: a scene becomes an image through signed distances."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.tiny_flux.scenes import COLOURS, Scene

Field = NDArray[np.floating]
Image = NDArray[np.uint8]

_angles = np.linspace(0, 2 * np.pi, 33)[:-1]
_heart_x = 16 * np.sin(_angles) ** 3
_heart_y = -(13 * np.cos(_angles) - 5 * np.cos(2 * _angles) - 2 * np.cos(3 * _angles) - np.cos(4 * _angles))
_tips = np.where(np.arange(10) % 2 == 0, 1.08, 0.46)
_spokes = np.arange(10) * np.pi / 5
_arm = 0.34

POLYGONS: dict[str, Field] = {
    "triangle": np.array([[0, -1.0], [1.0, 0.80], [-1.0, 0.80]]),
    "star": np.stack([_tips * np.sin(_spokes), -_tips * np.cos(_spokes)], 1),
    "heart": np.stack([_heart_x, _heart_y], 1) / 16.0 - [0, 0.12],
    "cross": np.stack(
        [
            [-_arm, _arm, _arm, 1, 1, _arm, _arm, -_arm, -_arm, -1, -1, -_arm],
            [-1, -1, -_arm, -_arm, _arm, _arm, 1, 1, _arm, _arm, -_arm, -_arm],
        ],
        1,
    ),
}
"""Corners of the polygonal shapes at radius 1, y pointing down."""


def polygon_distance(x: Field, y: Field, corners: Field) -> Field:
    """Signed distance to a closed polygon, negative inside. `corners` is (n, 2)."""
    corners = np.asarray(corners, np.float32)
    squared = np.full(x.shape, 1e9, np.float32)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        squared = np.minimum(squared, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
        crosses = ((ay <= y) & (by > y)) | ((by <= y) & (ay > y))
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < ax + (y - ay) * ex / ey)
    distance = np.sqrt(squared)
    return np.where(inside, -distance, distance)


def shape_distance(kind: str, x: Field, y: Field, radius: float) -> Field:
    """Signed distance to a shape at the origin, negative inside."""
    if kind == "circle":
        return np.hypot(x, y) - radius
    if kind == "ring":
        return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.26 * radius
    if kind == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.85 * radius
    return polygon_distance(x, y, POLYGONS[kind] * radius)


def background_mask(scene: Scene, x: Field, y: Field, pixel: float) -> Field:
    """Share of the second colour in every pixel, in [0, 1]."""

    def band(u: Field, phase: float, period: float) -> Field:
        return (0.25 - np.abs((u / period + phase) % 1.0 - 0.5)) * period

    def cover(distance: Field) -> Field:
        return np.clip(distance / pixel + 0.5, 0, 1)

    period = scene.period
    if scene.background == "solid":
        return np.zeros_like(x)
    if scene.background == "gradient":
        ramp = (x, y, (x + y) / 2, (x - y) / 2)[scene.direction] * 0.5 + 0.5
        return np.clip((ramp if scene.sign > 0 else 1 - ramp) * 1.1 - 0.05, 0, 1)
    if scene.background == "checker":
        a = cover(band(x, scene.phases[0], period * 1.25))
        b = cover(band(y, scene.phases[1], period * 1.25))
        return a * (1 - b) + b * (1 - a)
    if scene.background == "dots":
        u = ((x / period + scene.phases[0]) % 1.0 - 0.5) * period
        v = ((y / period + scene.phases[1]) % 1.0 - 0.5) * period
        return cover(0.29 * period - np.hypot(u, v))
    axis = {"hstripes": y, "vstripes": x, "dstripes": (x + scene.sign * y) / np.sqrt(2)}[scene.background]
    return cover(band(axis, scene.phases[0], period))


def render(scene: Scene, size: int = 128) -> Image:
    """Render a scene to (size, size, 3) uint8."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(grid, grid)
    pixel = 2.0 / size

    def colour(name: str, layer: int) -> Field:
        return np.clip(np.array(COLOURS[name], np.float32) / 255 * scene.brightness[layer], 0, 1)

    mask = background_mask(scene, x, y, pixel)[..., None]
    image = colour(scene.first, 0) * (1 - mask) + colour(scene.second, 1) * mask
    for shape in scene.shapes:
        cos, sin = np.cos(shape.rotation), np.sin(shape.rotation)
        u, v = (x - shape.x) * cos + (y - shape.y) * sin, -(x - shape.x) * sin + (y - shape.y) * cos
        alpha = np.clip(-shape_distance(shape.kind, u, v, shape.radius) / pixel + 0.5, 0, 1)[..., None]
        image = image * (1 - alpha) + colour(shape.colour, 2) * alpha
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def halve(image: Image) -> Image:
    """The same scene at half the height and width, by 2x2 box average."""
    n = image.shape[0] // 2
    return (image.reshape(n, 2, n, 2, 3).astype(np.float32).mean((1, 3)) + 0.5).astype(np.uint8)
