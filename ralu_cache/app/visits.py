"""A visitor's comparison from the pressed button to the shown pictures; what goes wrong is told to that visitor."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from ralu_cache.app.form import Form
from ralu_cache.app.orders import Order, python_lines
from ralu_cache.app.studio import Drawing, Job, Stopped, Studio
from ralu_cache.generate import FRAMES_PER_SECOND, Request
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.quality.likeness import psnr, ssim
from ralu_cache.report.report import Report
from ralu_cache.report.timeline import save_run
from ralu_cache.report.token_map import save_token_map
from ralu_cache.report.videos import as_frames, latent_frames, save_gif, side_by_side, still, tall, to_images

logger = logging.getLogger("ralu_cache")
SHOWN = 512  # pixels: smaller pictures are shown larger, every pixel as a square
Steps = Callable[[str, int, int], None]
"""Told of what is being drawn, of the steps done and of the steps in all."""


class Studios:
    """The models on offer, each loaded when it is first asked for. first: the one to begin with.

    folder: of the films that visitors look at; it goes when this does.
    """

    def __init__(self, first: Request) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="ralu-cache-")
        self.first = first.model
        self._requests = {name: replace(first, model=name) for name in dict.fromkeys((first.model, *EMBEDDED))}
        self._loaded: dict[str, Studio] = {}
        self._lock = threading.Lock()

    @property
    def sides(self) -> dict[str, int]:
        """Pixels of a side, of the models whose size is known before they are loaded."""
        return {name: model.size for name, model in EMBEDDED.items()}

    @property
    def names(self) -> list[str]:
        return list(self._requests)

    def __getitem__(self, name: str) -> Studio:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = Studio(self._requests[name])
            return self._loaded[name]


class Visitors:
    """Who asked to stop, by the session's name."""

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}

    def arrive(self, session: str) -> None:
        """A new order: what was stopped before counts no more."""
        self._stops[session] = threading.Event()

    def stop(self, session: str) -> None:
        self._stops.setdefault(session, threading.Event()).set()

    def leave(self, session: str) -> None:
        """The page was closed: what is under way ends, and nothing is kept of it."""
        if (event := self._stops.pop(session, None)) is not None:
            event.set()

    def job(self, session: str, told: Callable[[int, int], None]) -> Job:
        """For one drawing of this visitor."""
        stops = self._stops.setdefault(session, threading.Event())
        return Job(told, stops.is_set)


@dataclass(frozen=True)
class Shown:
    """What is known so far; None where there is nothing (yet)."""

    status: str
    full: Image.Image | None = None
    fast: Image.Image | None = None
    film: str | None = None
    tokens: Image.Image | None = None
    timeline: Image.Image | None = None
    report: str | None = None
    code: str | None = None


def compare(studios: Studios, visitors: Visitors, form: Form, session: str, steps: Steps) -> Iterator[Shown]:
    """The accelerated picture first, for it is there soon; then the full one beside it. Never raises."""
    try:
        studio = studios[form.model]
        yield from _compare(studio, form.order(studio), visitors, session, steps, Path(studios.folder.name))
    except Stopped:
        yield Shown(notice("Cancelled.", "Nothing of it is kept; draw again when you like."))
    except (ImportError, OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        yield Shown(notice("This can't be drawn.", " ".join(str(error).split()) or type(error).__name__, wrong=True))
    except Exception as error:
        logger.exception("an order failed")
        told = f"{type(error).__name__}: {error}. The server goes on; its terminal says more."
        yield Shown(notice("Something broke.", told, wrong=True))


def _compare(
    studio: Studio, order: Order, visitors: Visitors, session: str, steps: Steps, folder: Path
) -> Iterator[Shown]:
    code = python_lines(order, studio.pipe)
    fast = studio.accelerated(order, visitors.job(session, lambda done, total: steps("accelerated", done, total)))
    report = fast.report
    assert report is not None
    known: dict[str, Any] = {
        "fast": _shown(fast), "tokens": _tokens(fast, report), "report": str(report), "code": code,
        "timeline": _figure(lambda path: save_run(report, path)),
    }  # fmt: skip
    yield Shown(_figures(fast, report, None, order), **known)
    full = studio.full(order, visitors.job(session, lambda done, total: steps("full", done, total)))
    yield Shown(_figures(fast, report, full, order), full=_shown(full), film=_film(order, full, fast, folder), **known)


def notice(title: str, text: str, wrong: bool = False) -> str:
    """A line of words in place of figures."""
    return f'<div class="notice{" wrong" if wrong else ""}"><b>{escape(title)}</b> {escape(text)}</div>'


def _figures(fast: Drawing, report: Report, full: Drawing | None, order: Order) -> str:
    """Seconds, gain and likeness as cards, and what the run noticed."""
    cards = [("accelerated", f"{fast.seconds:.2f} s", f"{len(report.steps)} steps")]
    if full is not None:
        kept = "kept from before" if full.kept else f"{report.baseline_steps} steps"
        cards.insert(0, ("full", f"{full.seconds:.2f} s", kept))
        cards.append(("faster", f"{full.seconds / fast.seconds:.1f}×", "one run each"))
    cards.append(_saved(report))
    if full is not None:
        same = np.array_equal(full.picture, fast.picture)
        pair = as_frames(fast.picture[None]), as_frames(full.picture[None])
        cards.append(("PSNR", "equal" if same else f"{np.mean(psnr(*pair)):.1f} dB", "to the full picture"))
        cards.append(("SSIM", f"{np.mean(ssim(*pair)):.3f}", "to the full picture"))
    shown = "".join(f"<div><i>{name}</i><b>{value}</b><span>{note}</span></div>" for name, value, note in cards)
    notices = "".join(f"<li>{escape(text)}</li>" for text in [*_resized(fast, order), *report.notices])
    return f'<div class="cards">{shown}</div>' + (f'<ul class="said">{notices}</ul>' if notices else "")


def _saved(report: Report) -> tuple[str, str, str]:
    """In FLOPs; of a model whose FLOPs nobody knows, in calls."""
    if report.counted:
        return "fewer FLOPs", f"{report.flop_ratio:.1f}×", "of the denoiser"
    return "model called", f"{report.called_steps} of {len(report.steps)}", "steps"


def _resized(drawing: Drawing, order: Order) -> list[str]:
    """Pipelines round sizes; the visitor is told."""
    height, width = drawing.picture.shape[-3:-1]
    asked = order.request.height or height, order.request.width or width
    if asked == (height, width):
        return []
    return [f"the pipeline drew {width}x{height} pixels, asked were {asked[1]}x{asked[0]}: it rounds to what it can"]


def _tokens(drawing: Drawing, report: Report) -> Image.Image | None:
    """None where nothing is known of the model's tokens."""
    if not all(report.size):
        return None
    picture = drawing.picture
    if picture.ndim == 4:
        picture = tall(picture, latent_frames(report.size, picture))
    return _figure(lambda path: save_token_map(report, path, picture))


def _figure(save: Callable[[Path], None]) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        save(path)
        return Image.open(path).convert("RGB")


def _shown(drawing: Drawing) -> Image.Image:
    """A picture, or a video's frames beside each other, no side smaller than `SHOWN`."""
    picture = drawing.picture if drawing.picture.ndim == 3 else still(drawing.picture, 3)
    image = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
    scale = -(-SHOWN // min(image.size))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _film(order: Order, full: Drawing, fast: Drawing, folder: Path) -> str | None:
    """Of videos an animation, full and accelerated side by side; None of pictures."""
    if full.picture.ndim == 3:
        return None
    scale = -(-SHOWN // full.picture.shape[1])
    columns = {"full": [to_images(full.picture, scale)], "accelerated": [to_images(fast.picture, scale)]}
    path = folder / f"{uuid4().hex}.gif"
    model = order.request.model
    known = EMBEDDED[model].frames_per_second if model in EMBEDDED else None
    save_gif(side_by_side(columns), path, known or FRAMES_PER_SECOND)
    return str(path)
