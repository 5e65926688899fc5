"""Everything that comes out of a sweep: tables, figure, strips and the page."""

from __future__ import annotations

from pathlib import Path

from ralu_cache.sweep.page import page
from ralu_cache.sweep.pareto import draw_panels, panel_svg, save_pareto
from ralu_cache.sweep.pictures import save_strip, strips
from ralu_cache.sweep.summary import load_summary
from ralu_cache.sweep.tables import csv_table, loss_csv, markdown_table


def write_outputs(results: Path, folder: Path) -> None:
    """Writes table.csv, speed_at_loss.csv, table.md, index.html, pareto.png and strip.png into `folder`.

    Pictures are looked for in `pictures/` beside the results; without any there is no strip.png.
    """
    summary = load_summary(results)
    shown, panels = strips(summary, results.parent / "pictures"), draw_panels(summary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(csv_table(summary))
    (folder / "speed_at_loss.csv").write_text(loss_csv(summary))
    (folder / "table.md").write_text(markdown_table(summary))
    save_pareto(summary, panels, folder / "pareto.png")
    if shown:
        save_strip(shown, folder / "strip.png")
    plots = [panel_svg(summary, panel, figure) for panel, figure in panels.items()]
    (folder / "index.html").write_text(page(summary, shown, plots))
