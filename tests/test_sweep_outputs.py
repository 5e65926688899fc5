"""The files that come out of a sweep."""

import csv
import re
from dataclasses import replace

import numpy as np
from PIL import Image

from ralu_cache.sweep.outputs import write_outputs
from ralu_cache.sweep.page import page
from ralu_cache.sweep.panel import panels
from ralu_cache.sweep.pareto import save_pareto
from ralu_cache.sweep.summary import summarise
from tests.sweep_results import distance, fabricated, write_results


def test_all_outputs_are_written_and_the_page_stands_alone(tmp_path):
    write_outputs(write_results(tmp_path, fabricated()), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"table.csv", "speed_at_loss.csv", "table.md", "pareto.png", "strip.png", "index.html"}
    html = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    assert "out of &lt;memory&gt;" in html and "<memory>" not in html and "circle <0>" not in html
    assert "ralu-7x (only 12 pictures)" in html
    assert len((tmp_path / "out" / "table.csv").read_text().splitlines()) == 22
    with (tmp_path / "out" / "speed_at_loss.csv").open() as file:
        groups = {line["group"]: line["method"] for line in csv.DictReader(file)}
    assert list(groups) == ["steps", "peer", "spatial", "temporal", "combined"]
    assert groups["temporal"] == "+seacache:0.2" and groups["steps"] == ""
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Where others beat this library" in text and "| 128x128 | ours: temporal only | " in text


def test_limits_hold_every_bar_and_likeness_leaves_the_full_run_out():
    summary = summarise(fabricated(sizes=(128, 256)), {"distance": distance})
    shown = panels(summary)
    assert [panel.metric for panel in shown] == ["attributes", "psnr", "distance"] * 2
    for panel in shown:
        low, high = panel.y
        assert all(low < p.y - p.error and p.y + p.error < high for p in panel.points)
        assert all(panel.x[0] < p.left <= p.x <= p.right < panel.x[1] for p in panel.points) and panel.x[0] < 1
        families = {point.row.family for point in panel.points}
        assert ("full" in families, panel.full is None) == (panel.metric != "psnr", panel.metric == "psnr")
        sizes = {point.row.setting.height for point in panel.points}
        assert len(sizes) == 1 and f"{sizes.pop()} pixels" in panel.title


def test_every_size_has_plots_of_its_own(tmp_path):
    results = fabricated(sizes=(128, 256))
    html = page(summarise(results, {"distance": distance}), tmp_path / "none")
    assert html.count('<svg viewBox="0 0 460') == 6 and html.count("256x256 pixels") >= 3
    few = [record for record in results.records if record.setting.method in ("none", "steps:8", "+taylorseer:2")]
    heights = []
    for records in (few, [record for record in few if record.setting.height == 128]):
        save_pareto(summarise(replace(results, records=records)), tmp_path / "pareto.png")
        with Image.open(tmp_path / "pareto.png") as picture:
            heights.append(picture.height)
            assert np.asarray(picture.convert("L")).std() > 1
    assert heights[0] > 1.5 * heights[1]
