"""The tab that looks through a sweep: its results, a point that is clicked, what that setting and the full run drew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ralu_cache.app.results import Front, open_front

NONE = (
    "No results yet. `ralu-cache sweep --out out/sweep` makes some; `ralu-cache app --results FOLDER` shows those of "
    "another folder."
)
CLICK = "Click a point to see what that setting drew."


def add_gallery(results: Mapping[str, Path]) -> None:
    """results: results files by what to call them; only these are ever opened."""
    if not results:
        gr.Markdown(NONE, elem_id="no-results")
        return
    names = list(results)
    with gr.Row():
        chosen = gr.Dropdown(names, value=names[0], label="Results", scale=3, elem_id="results")
        metric = gr.Dropdown([], label="Quality by", scale=2, elem_id="metric")
    with gr.Row():
        with gr.Column(scale=5):
            gr.Markdown(CLICK)
            plot = gr.Image(show_label=False, format="png", interactive=False, buttons=[], elem_id="front")
            setting = gr.Dropdown([], label="Or choose it by name", elem_id="setting")
        with gr.Column(scale=6):
            told = gr.Markdown(elem_id="told")
            full = gr.Gallery(label="full run", columns=4, height=230, object_fit="contain", elem_id="full-pictures")
            mine = gr.Gallery(label="this setting", columns=4, height=230, object_fit="contain", elem_id="pictures")
    shown = [plot, setting, told, full, mine]

    def opened(name: str, wanted: str | None) -> Front:
        return open_front(results[name], wanted)

    def fresh(name: str) -> list[Any]:
        front = opened(name, None)
        labels = {front.summary.header.metrics[key].label: key for key in front.summary.plotted}
        return [gr.update(choices=list(labels.items()), value=front.metric), *_all(front, front.rows[-1])]

    def by_metric(name: str, wanted: str) -> list[Any]:
        front = opened(name, wanted)
        return _all(front, front.rows[-1])

    def clicked(name: str, wanted: str, place: gr.SelectData) -> list[Any]:
        front = opened(name, wanted)
        return _all(front, front.nearest(*place.index))

    def named(name: str, wanted: str, label: str) -> list[Any]:
        front = opened(name, wanted)
        row = next((row for row in front.rows if front.summary.label(row) == label), front.rows[-1])
        return _all(front, row)

    gr.on(None, fresh, chosen, [metric, *shown], api_visibility="private")
    chosen.input(fresh, chosen, [metric, *shown], api_visibility="private")
    metric.input(by_metric, [chosen, metric], shown, api_visibility="private")
    plot.select(clicked, [chosen, metric], shown, api_visibility="private")
    setting.input(named, [chosen, metric, setting], shown, api_visibility="private")


def _all(front: Front, row: Any) -> list[Any]:
    """The plot with a ring around a row, its name, and its pictures under those of the full run."""
    label = front.summary.label
    references = [one for one in front.summary.rows if one.family == "full" and one.setting.size == front.size]
    pictures = [(str(file), caption) for file, caption in front.pictures(row)]
    full = [(str(file), caption) for one in references for file, caption in front.pictures(one)]
    note = "" if pictures else "\n\nNo pictures of it were kept."
    names = [label(one) for one in front.rows]
    return [front.draw(row), gr.update(choices=names, value=label(row)), f"**{front.told(row)}**{note}", full, pictures]
