"""Draws the pictures of this site and measures its table of methods with the embedded model: `python docs/figures.py`.

The app's screenshot is taken by `python docs/screenshot.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ralu_cache import accelerate
from ralu_cache.demo_plans import DEMO
from ralu_cache.models.embedded import TINY_FLUX
from ralu_cache.report.figures import save_grid
from ralu_cache.report.report import Report
from ralu_cache.report.table import Table
from ralu_cache.report.text import readable_bytes
from ralu_cache.report.token_map import save_token_map

DOCS = Path(__file__).parent
PICTURES, TABLES = DOCS / "pictures", DOCS / "tables"
SEED, STEPS = 0, 28
COMPARED = ("ralu-8x", "ralu-15x")
MEASURED: tuple[tuple[str, dict[str, str]], ...] = (
    ("forecast:3", {"temporal": "forecast:3"}),
    ("teacache:0.4", {"temporal": "teacache:0.4"}),
    ("seacache:0.3", {"temporal": "seacache:0.3"}),
    ("taylorseer:3", {"temporal": "taylorseer:3"}),
    ("taylorseer:3,per_layer=true", {"temporal": "taylorseer:3,per_layer=true"}),
    ("toca:4", {"temporal": "toca:4"}),
    ("adaptive:2", {"temporal": "adaptive:2"}),
    ("adaptive:2,ratio=0.3", {"temporal": "adaptive:2,ratio=0.3"}),
    ("multistep", {"solver": "multistep"}),
    ("ralu-8x", {"spatial": "ralu-8x"}),
)


def drawn(pipe: Any, prompt: str, **parts: str) -> tuple[Image.Image, Report | None]:
    """One picture at the demo's guidance."""
    handle = accelerate(pipe, **parts) if parts else None  # type: ignore[arg-type]
    image = pipe(
        prompt, negative_prompt="", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(SEED),
        **DEMO.arguments,
    ).images[0]  # fmt: skip
    report = None if handle is None else handle.report
    if handle is not None:
        handle.disable()
    return image, report


def draw(pipe: Any) -> None:
    """A run's tokens and timeline; pictures of three prompts in full and accelerated."""
    image, report = drawn(pipe, DEMO.prompts[3], spatial="ralu-4x", temporal="seacache:0.4")
    assert report is not None
    save_token_map(report, PICTURES / "tokens.png", image)
    report.plot(PICTURES / "timeline.png", image)
    rows = {"full": {}} | {name: {"spatial": name} for name in COMPARED}
    pictures = {name: [drawn(pipe, prompt, **parts)[0] for prompt in DEMO.prompts[1:4]] for name, parts in rows.items()}
    save_grid(pictures, DEMO.prompts[1:4], PICTURES / "compare.png")
    for path in PICTURES.glob("*.png"):
        Image.open(path).convert("RGB").quantize(200, Image.Quantize.FASTOCTREE).save(path, optimize=True)


def measure(pipe: Any) -> None:
    """What each method spares and keeps, of one guided picture."""
    rows = []
    for name, parts in MEASURED:
        report = drawn(pipe, DEMO.prompts[0], **parts)[1]
        assert report is not None
        computed = sum(1 - step.reused_share for step in report.steps)
        kept = readable_bytes(report.peak_cached_bytes) if report.peak_cached_bytes else "nothing"
        rows.append((f"`{name}`", f"{computed:.1f} of {len(report.steps)}", f"{report.flop_ratio:.2f}x", kept))
    table = Table(("method", "steps computed", "fewer FLOPs", "kept at most"), rows)
    TABLES.mkdir(exist_ok=True)
    (TABLES / "methods.md").write_text(table.markdown() + "\n")


if __name__ == "__main__":
    stock = TINY_FLUX.load()
    stock.set_progress_bar_config(disable=True)
    draw(stock)
    measure(stock)
