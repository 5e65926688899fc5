"""The page: fields and buttons, what they do, and where what comes back is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ralu_cache.app.form import PARTS, SPEEDUP, WAYS, Form
from ralu_cache.app.gallery import add_gallery
from ralu_cache.app.orders import guidance_of
from ralu_cache.app.studio import Studio
from ralu_cache.app.visits import Shown, Studios, Visitors, compare, notice
from ralu_cache.demo_plans import demo_prompts
from ralu_cache.plane.spatial import spatial_names
from ralu_cache.temporal import temporal_names

TITLE = "ralu_cache"
HEAD = (
    "# ralu_cache\nThe same prompt and seed, drawn by the stock pipeline and by the accelerated one. "
    "Drag the line to compare."
)
WELCOME = "Choose how much faster, then press Draw both. The accelerated picture comes first."
DRAWING = "accelerated picture; the full one is being drawn"
PAIR = "full on the left, accelerated on the right"
MOST_LETTERS = 200  # of a part of a reason: longer ones list all pipelines that are served
BUTTONS: Any = ["download", "fullscreen"]
FIRST_SPEEDUP, MOST_SPEEDUP = 5, 24


def build(studios: Studios, results: Mapping[str, Path]) -> gr.Blocks:
    """The whole page. results: sweeps' results files by what to call them."""
    visitors = Visitors()
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=False) as page:
        gr.Markdown(HEAD, elem_id="head")
        with gr.Tab("Draw"):
            _add_drawing(page, studios, visitors)
        with gr.Tab("Results"):
            add_gallery(results)
        page.unload(_of_session(visitors.leave))
    return page


def _of_session(action: Callable[[str], None]) -> Callable[[gr.Request], None]:
    """An event's function that does something with the name of the visitor's session."""

    def act(request: gr.Request) -> None:
        action(_session(request))

    return act


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def _add_drawing(page: gr.Blocks, studios: Studios, visitors: Visitors) -> None:
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            model, prompt = _add_prompt(studios)
            ways, groups = _add_ways()
            with gr.Row():
                draw = gr.Button("Draw both", variant="primary", elem_id="draw")
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
            refused = gr.Markdown(visible=False, elem_id="refused")
            call = _add_call()
            prompts = [[text] for text in demo_prompts(studios.first)]
            samples = gr.Dataset(components=[prompt], samples=prompts, label="Prompts", elem_id="samples")
        with gr.Column(scale=7, min_width=400):
            outputs = _add_outputs()
    negative, guidance, seed, steps, width, height = call
    fields = [model, prompt, negative, guidance, seed, steps, width, height, *ways]
    described = [prompt, guidance, width, height, ways[0], *ways[2:], samples, refused]
    model.change(_describer(studios), [model, prompt], described, api_visibility="private")
    page.load(_describer(studios), [model, prompt], described, api_visibility="private")
    samples.click(lambda chosen: chosen[0], samples, prompt, api_visibility="private")
    ways[0].change(_shows, ways[0], groups, queue=False, api_visibility="private")
    order = draw.click(_of_session(visitors.arrive), None, None, queue=False, api_visibility="private")
    order.then(
        _comparer(studios, visitors), fields, outputs, show_progress_on=outputs[0], concurrency_limit=1,
        concurrency_id="draw", api_visibility="private",
    )  # fmt: skip
    cancel.click(_of_session(visitors.stop), None, None, queue=False, api_visibility="private")


def _add_prompt(studios: Studios) -> tuple[Any, Any]:
    model = gr.Dropdown(studios.names, value=studios.first, label="Model", elem_id="model")
    prompt = gr.Textbox(demo_prompts(studios.first)[0], label="Prompt", lines=2, max_lines=6, elem_id="prompt")
    return model, prompt


def _add_ways() -> tuple[list[Any], list[gr.Group]]:
    """The fields of the acceleration in the order of `Form`, and the groups that `_shows` switches."""
    way = gr.Radio(WAYS, value=SPEEDUP, label="Choose", elem_id="way")
    with gr.Group() as by_speed:
        speedup = gr.Slider(1.5, MOST_SPEEDUP, FIRST_SPEEDUP, step=0.5, elem_id="speedup",
                            label="Times fewer FLOPs, at least")  # fmt: skip
    with gr.Group(visible=False) as by_parts:
        spatial = gr.Dropdown(["none", *spatial_names()], value="ralu", label="Spatial stages", elem_id="spatial")
        temporal = gr.Dropdown(["none", *temporal_names()], value="none", label="Reuse in time, or name:setting",
                               allow_custom_value=True, elem_id="temporal")  # fmt: skip
        solver = gr.Dropdown(["none", "multistep", "dpm"], value="none", label="Solver", elem_id="solver")
        guided = gr.Dropdown(["none", "early", "all"], value="none", label="Guidance in which steps, or early:t",
                             allow_custom_value=True, elem_id="guided")  # fmt: skip
    return [way, speedup, spatial, temporal, solver, guided], [by_speed, by_parts]


def _add_call() -> list[Any]:
    """Negative prompt, guidance, seed, steps, width, height."""
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, min_width=80, elem_id="seed")
        steps = gr.Number(50, label="Steps", precision=0, min_width=80, elem_id="steps")
        guidance = gr.Number(None, label="Guidance", min_width=80, elem_id="guidance")
    with gr.Row():
        width = gr.Number(None, label="Width, pixels", precision=0, min_width=80, elem_id="width")
        height = gr.Number(None, label="Height, pixels", precision=0, min_width=80, elem_id="height")
    with gr.Accordion("Negative prompt", open=False):
        negative = gr.Textbox("", label="Negative prompt", show_label=False, elem_id="negative")
    return [negative, guidance, seed, steps, width, height]


def _add_outputs() -> list[Any]:
    """In the order of `Shown`, the two pictures as one slider."""
    status = gr.HTML(notice("Ready.", WELCOME), elem_id="status", min_height=96)
    pair = gr.ImageSlider(label=PAIR, format="png", type="pil", interactive=False, max_height=560, elem_id="pair")
    film = gr.Image(label="full and accelerated", type="filepath", visible=False, buttons=BUTTONS, elem_id="film")
    with gr.Tab("Computed tokens"):
        tokens = gr.Image(show_label=False, format="png", interactive=False, buttons=BUTTONS, elem_id="tokens")
    with gr.Tab("Timeline"):
        timeline = gr.Image(show_label=False, format="png", interactive=False, buttons=BUTTONS, elem_id="timeline")
    with gr.Tab("Report"):
        report = gr.Code(language=None, show_label=False, show_line_numbers=False, interactive=False, elem_id="report")
    with gr.Tab("Python"):
        code = gr.Code(language="python", show_label=False, show_line_numbers=False, interactive=False, elem_id="code")
    return [status, pair, film, tokens, timeline, report, code]


def _shows(way: str) -> list[Any]:
    return [gr.update(visible=way == SPEEDUP), gr.update(visible=way == PARTS)]


def _describer(studios: Studios) -> Callable[[str, str], list[Any]]:
    """What changes with the model: defaults, choices, prompts, and what it can't."""

    def describe(model: str, prompt: str) -> list[Any]:
        try:
            studio = studios[model]
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise gr.Error(f"{model} can't be loaded: {error}", print_exception=False) from error
        guided, prompts = guidance_of(model, studio.pipe), demo_prompts(model)
        another = any(prompt in demo_prompts(name) for name in studios.names) and prompt not in prompts
        return [
            prompts[0] if another else gr.skip(),  # what the visitor typed stays
            gr.update(value=None if guided is None else guided[1], interactive=guided is not None),
            *(gr.update(value=studios.sides.get(model)) for _ in ("width", "height")), *_choices(studio),
            gr.update(samples=[[text] for text in prompts]), _refused(studio),
        ]  # fmt: skip

    return describe


def _choices(studio: Studio) -> list[Any]:
    """Of the way and the parts' fields, without what is refused."""
    spatial = [] if "spatial" in studio.refused else spatial_names()
    temporal = [name for name in temporal_names() if f"temporal={name}" not in studio.refused]
    solver = [] if "solver" in studio.refused else ["multistep", "dpm"]
    guided = [] if "guidance" in studio.refused else ["early", "all"]
    ways = [way for way in WAYS if way != SPEEDUP or "speedup" not in studio.refused]
    alone = "forecast:2" if "forecast" in temporal and not spatial else "none"
    return [
        gr.update(choices=ways, value=ways[0]),
        gr.update(choices=["none", *spatial], value="ralu" if spatial else "none"),
        gr.update(choices=["none", *temporal], value=alone),
        *(gr.update(choices=["none", *names], value="none") for names in (solver, guided)),
    ]


def _refused(studio: Studio) -> Any:
    """The settings by why they are refused."""
    reasons: dict[str, list[str]] = {}
    for name, reason in studio.refused.items():
        setting, parts = name.partition("=")[0], reason.split("; ")
        told = [part for part in parts if len(part) < MOST_LETTERS and not part.startswith(f"{setting}=")]
        reasons.setdefault("; ".join(told), []).append(name)
    lines = [f"- **{', '.join(names)}**: {reason}" for reason, names in reasons.items()]
    return gr.update(value="Not for this model:\n" + "\n".join(lines), visible=bool(lines))


def _comparer(studios: Studios, visitors: Visitors) -> Callable[..., Iterator[list[Any]]]:
    def comparison(
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio looks for it there)
        *values: Any,
    ) -> Iterator[list[Any]]:
        def steps(what: str, done: int, total: int) -> None:
            progress((done, total), desc=f"{what} picture, step", unit="steps")

        yield _updates(Shown(notice("Drawing", "the accelerated picture first ...")))
        progress(0, desc="beginning")
        for shown in compare(studios, visitors, Form(*values), _session(request), steps):
            yield _updates(shown)

    return comparison


def _updates(shown: Shown) -> list[Any]:
    """Of the outputs; what is not known stays as it is."""
    pair = gr.skip()
    if shown.fast is not None:
        full = shown.full or shown.fast
        pair = gr.update(value=(full, shown.fast), label=DRAWING if shown.full is None else PAIR)
    others = (shown.tokens, shown.timeline, shown.report, shown.code)
    film = gr.update(value=shown.film, visible=shown.film is not None)
    return [shown.status, pair, film, *(gr.skip() if value is None else value for value in others)]
