"""The files that come out of a sweep."""

import csv
import math
import re
from dataclasses import replace
from html import escape as html_escape
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ralu_cache.sweep import pareto
from ralu_cache.sweep.outputs import write_outputs
from ralu_cache.sweep.summary import summarise
from ralu_cache.sweep.tables import times
from tests.sweep_results import distance, fabricated, write_results

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def test_all_outputs_are_written_and_the_page_stands_alone(tmp_path):
    write_outputs(write_results(tmp_path, fabricated()), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"table.csv", "speed_at_loss.csv", "table.md", "pareto.png", "strip.png", "index.html"}
    html = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert "out of &lt;memory&gt;" in html and "<memory>" not in html and "circle <0>" not in html
    assert "ralu-7x (only 12 pictures)" in html
    assert len((tmp_path / "out" / "table.csv").read_text().splitlines()) == 22
    with (tmp_path / "out" / "speed_at_loss.csv").open() as file:
        groups = {line["group"]: line["method"] for line in csv.DictReader(file)}
    assert list(groups) == ["steps", "peer", "spatial", "temporal", "combined"]
    assert groups["temporal"] == "+seacache:0.2" and groups["steps"] == ""
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Where others beat this library" in text and "| 128x128 | ours: temporal only | " in text


def test_panels_hold_what_was_timed_and_likeness_leaves_the_full_run_out():
    summary = summarise(fabricated(sizes=(128, 256)), {"distance": distance})
    shown = pareto.panels(summary)
    assert shown == [((size, size), name) for size in (128, 256) for name in ("attributes", "psnr", "distance")]
    for size, name in shown:
        rows = pareto.drawn(summary, (size, name))
        assert {(row.setting.height, row.setting.width) for row in rows} == {size}
        assert ("full" in {row.family for row in rows}) == (name != "psnr")
    untimed = [replace(record, full_seconds=math.nan) for record in fabricated().records]
    assert pareto.panels(summarise(replace(fabricated(), records=untimed))) == []


def test_every_bar_and_the_numbers_apart_are_within_a_panel():
    summary = summarise(fabricated())
    figures = pareto.draw_panels(summary)
    for (_, name), figure in figures.items():
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        for row in summary.rows:
            if row.family != "full":
                value = row.quality[name]
                assert low < value.mean - value.error and value.mean + value.error < high
                assert axes.get_xlim()[0] < row.low <= row.high < axes.get_xlim()[1]
        labels = [text for text in axes.texts if text.get_text()]
        assert {text.get_text() for text in labels} == {str(number) for number in range(1, 21)}
        boxes = [text.get_window_extent() for text in labels]
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        assert all(axes.bbox.fully_overlaps(box) for box in boxes)


def test_every_size_has_plots_of_its_own_and_points_tell_their_setting(tmp_path):
    results = fabricated(sizes=(128, 256))
    few = ("none", "steps:8", "+taylorseer:2", "ralu-4x+seacache:0.4")
    results.records[:] = [record for record in results.records if record.setting.method in few]
    write_outputs(write_results(tmp_path, results), tmp_path)
    html = (tmp_path / "index.html").read_text()
    assert html.count('<svg viewBox="0 0 374') == 4 and html.count("256x256 pixels") >= 3
    summary = summarise(results)
    rows = [row for row in summary.rows if row.family != "full"]
    for row in rows:
        told = re.escape(html_escape(f"{summary.label(row)}: {times(row.speedup)}, "))
        assert len(re.findall(f"<title>{told}", html)) == 2, "one in each panel of its size"
    ids = re.findall(r' id="([^"]+)"', html)
    assert not [name for name in ids if re.fullmatch(r"[a-z]+_\d+", name)], "nothing that figures number alike"
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.height > 2 * 3.9 * 130 and np.asarray(picture.convert("L")).std() > 1


@pytest.mark.parametrize(("folder", "settings"), [("composition", 47), ("composition/guided", 14)])
def test_results_of_earlier_versions_still_make_a_page(tmp_path, folder, settings):
    write_outputs(RESULTS / folder / "results.jsonl", tmp_path)
    html = (tmp_path / "index.html").read_text()
    assert html.count("<tr><td>") >= settings and "there is nothing to plot" in html
    assert len((tmp_path / "table.csv").read_text().splitlines()) == settings + 1
