"""The tab that looks through a sweep or a study: a point that is clicked, what that setting and the full run drew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ralu_cache.app.results import Front, open_front
from ralu_cache.app.studies import StudyFront

NONE = (
    "No results yet. `ralu-cache sweep --out out/sweep` and `ralu-cache tune` make some; `ralu-cache app --results "
    "FOLDER` shows those of another folder."
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

    def fresh(name: str) -> list[Any]:
        front = open_front(results[name])
        return [gr.update(choices=front.metrics, value=front.metric), *_all(front)]

    def by_metric(name: str, wanted: str) -> list[Any]:
        return _all(open_front(results[name], wanted))

    def clicked(name: str, wanted: str, place: gr.SelectData) -> list[Any]:
        front = open_front(results[name], wanted)
        return _all(front, front.points.nearest(*place.index))

    def named(name: str, wanted: str, label: str) -> list[Any]:
        front = open_front(results[name], wanted)
        return _all(front, front.names.index(label) if label in front.names else -1)

    gr.on(None, fresh, chosen, [metric, *shown], api_visibility="private")
    chosen.input(fresh, chosen, [metric, *shown], api_visibility="private")
    metric.input(by_metric, [chosen, metric], shown, api_visibility="private")
    plot.select(clicked, [chosen, metric], shown, api_visibility="private")
    setting.input(named, [chosen, metric, setting], shown, api_visibility="private")


def _all(front: Front | StudyFront, place: int = -1) -> list[Any]:
    """The plot with a ring around a setting (the last one), its name, and its pictures under those of the full run."""
    pictures, full = (
        [(str(file), caption) for file, caption in some] for some in (front.pictures(place), front.full())
    )
    note = "" if pictures else "\n\nNo pictures of it were kept."
    named = gr.update(choices=front.names, value=front.names[place])
    return [front.points.draw(place), named, f"**{front.told(place)}**{note}", full, pictures]
