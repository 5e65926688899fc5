"""docs/pipelines.md: every listed pipeline, run with everything; the table there is what this test finds.

`WRITE_PIPELINES=1 pytest tests/test_pipelines_table.py` writes it anew.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ralu_cache import RALU, Adaptive, Report, TeaCache, ToCa, accelerate
from ralu_cache.adapters import find_adapter
from ralu_cache.adapters.protocols import Tokens
from ralu_cache.adapters.registry import BUILT_IN, known_adapters
from tests import test_flux_siblings, test_qwen_siblings, test_sd3
from tests.pipelines import Maker, make_pipeline, make_sd3_pipeline
from tests.pipelines_cogview4 import PIPELINES as COGVIEW4
from tests.pipelines_flux2 import SIBLINGS as FLUX2
from tests.pipelines_flux_kin import SIBLINGS as FLUX_KIN
from tests.pipelines_hunyuan import SIBLINGS as HUNYUAN
from tests.pipelines_ltx import SIBLINGS as LTX
from tests.pipelines_qwen import make_qwen_pipeline
from tests.pipelines_qwen21 import PIPELINES as QWEN21
from tests.pipelines_z_image import SIBLINGS as Z_IMAGE
from tests.surroundings import one_thread  # noqa: F401
from tests.test_qwen_siblings import small_references  # noqa: F401
from tests.wan_pipelines import block, make_wan_image_pipeline, make_wan_pipeline, videos

PAGE = Path(__file__).parents[1] / "docs" / "pipelines.md"
LISTED = [name for adapter in known_adapters()[-len(BUILT_IN) :] for name in adapter.pipelines]
POLICIES = {
    "TeaCache": TeaCache(9.0, coefficients="identity", first=1, compute_stage_end=False),
    "ToCa": ToCa(2, 0.3, first=1, compute_stage_end=False),
    "Adaptive": Adaptive(2, ratio=0.3, first=1, compute_stage_end=False),
}
COLUMNS = ("pipeline", "stages", *POLICIES, "strength", "guidance", "off = stock")
PLAN, STEPS = RALU(steps=(2, 2, 2)), 6
INTRODUCTION = """# Pipelines

Those that an adapter serves in full; what works on any other, and on which schedulers, says [anywhere.md](anywhere.md),
and pipeline by pipeline [coverage.md](coverage.md).

Written by a test run on small models of random weights (`WRITE_PIPELINES=1 pytest tests/test_pipelines_table.py`); the
test fails where a pipeline that an adapter lists is missing here, or does otherwise than is said. In every other cell
than "off = stock" the run was complete, its picture finite, and what the column says happened:

- stages: `RALU(steps=(2, 2, 2))`, a coarse, a mixed and a fine stage; "refused": the adapter says why it has none, and
  the other columns are without.
- TeaCache, ToCa, Adaptive: these policies on the stages, with something reused; of whole steps (as SeaCache and
  TaylorSeer do), of every layer (as `TaylorSeer(per_layer=True)` does), of some tokens; "refused": the adapter says why
  it has no layers to reach into.
- strength: an entry in the middle of the schedule, on stages; "-": the pipeline's call takes none.
- guidance: `guidance="early"` left out the unconditional prediction in the fine stage; "-": the pipeline computes every
  picture once a step (its guidance is distilled), and the report says so.
- off = stock: after `handle.disable()` the picture of the stock pipeline, bit for bit.
"""

def plain(make: Callable[[], Any], arguments: Callable[[Any], dict[str, Any]]) -> Maker:
    def maker() -> tuple[Any, Callable[[], dict[str, Any]]]:
        pipe = make()
        return pipe, partial(arguments, pipe)

    return maker


def sibling(module: Any, kind: str) -> Maker:
    def maker() -> tuple[Any, Callable[[], dict[str, Any]]]:
        pipe, extra = module.make(kind)
        return pipe, lambda: module.arguments(pipe) | extra

    return maker


MAKERS: dict[str, Maker] = {
    "FluxPipeline": plain(make_pipeline, test_flux_siblings.arguments),
    "FluxImg2ImgPipeline": sibling(test_flux_siblings, "img2img"),
    "FluxInpaintPipeline": sibling(test_flux_siblings, "inpaint"),
    "FluxFillPipeline": sibling(test_flux_siblings, "fill"),
    "FluxKontextPipeline": sibling(test_flux_siblings, "kontext"),
    "FluxKontextInpaintPipeline": sibling(test_flux_siblings, "kontext inpaint"),
    "FluxControlPipeline": sibling(test_flux_siblings, "control"),
    "FluxControlImg2ImgPipeline": sibling(test_flux_siblings, "control img2img"),
    "FluxControlInpaintPipeline": sibling(test_flux_siblings, "control inpaint"),
    "FluxControlNetPipeline": sibling(test_flux_siblings, "controlnet"),
    "FluxControlNetImg2ImgPipeline": sibling(test_flux_siblings, "controlnet img2img"),
    "FluxControlNetInpaintPipeline": sibling(test_flux_siblings, "controlnet inpaint"),
    "StableDiffusion3Pipeline": plain(make_sd3_pipeline, test_sd3.arguments),
    "StableDiffusion3Img2ImgPipeline": sibling(test_sd3, "img2img"),
    "StableDiffusion3InpaintPipeline": sibling(test_sd3, "inpaint"),
    "StableDiffusion3ControlNetPipeline": sibling(test_sd3, "controlnet"),
    "StableDiffusion3ControlNetInpaintingPipeline": sibling(test_sd3, "controlnet inpaint"),
    "QwenImagePipeline": plain(make_qwen_pipeline, test_qwen_siblings.arguments),
    "QwenImageImg2ImgPipeline": sibling(test_qwen_siblings, "img2img"),
    "QwenImageInpaintPipeline": sibling(test_qwen_siblings, "inpaint"),
    "QwenImageEditPipeline": sibling(test_qwen_siblings, "edit"),
    "QwenImageEditPlusPipeline": sibling(test_qwen_siblings, "edit plus"),
    "QwenImageEditInpaintPipeline": sibling(test_qwen_siblings, "edit inpaint"),
    "QwenImageControlNetPipeline": sibling(test_qwen_siblings, "controlnet"),
    "QwenImageControlNetInpaintPipeline": sibling(test_qwen_siblings, "controlnet inpaint"),
    "WanPipeline": plain(make_wan_pipeline, lambda pipe: videos((0,), guidance_scale=2.5)),
    "WanImageToVideoPipeline": plain(
        make_wan_image_pipeline, lambda pipe: videos((0,), 512, image=block(), guidance_scale=2.5)
    ),
    **FLUX2,
    **Z_IMAGE,
    **HUNYUAN,
    **LTX,
    **FLUX_KIN,
    **COGVIEW4,
    **QWEN21,
}


UNGUIDED = {"true_cfg_scale": 1.0, "guidance_scale": 1.0}  # half the work, where guidance isn't the matter


def draw(pipe: Any, arguments: Callable[[], dict[str, Any]], **overrides: Any) -> Tensor:
    torch.manual_seed(0)  # some pipelines encode their control image with it
    given = arguments()
    given |= {"num_inference_steps": STEPS, "return_dict": False}
    if given.get("width") == 96:  # where the arguments are from they are larger than needed here
        given |= {"height": 32, "width": 48}
    given |= {name: value for name, value in overrides.items() if name in given or name == "strength"}
    picture: Tensor = pipe(**given)[0]
    assert picture.isfinite().all()
    return picture


def accelerated(pipe: Any, arguments: Any, options: dict[str, Any], **overrides: Any) -> Report | str:
    """The report of a run that was complete, or what stands in its place in the table."""
    try:
        with accelerate(pipe, **options) as handle:
            draw(pipe, arguments, **overrides)
    except (RuntimeError, ValueError) as error:
        return "refused" if isinstance(error, ValueError) else "fails"
    assert handle.report is not None and handle.report.completed
    return handle.report


def told(report: Report | str, happened: Callable[[Report], bool]) -> str:
    if isinstance(report, str):
        return report
    return "yes" if happened(report) else "no"


def staged(report: Report) -> bool:
    return [stage.kind for stage in report.stages] == ["coarse", "mixed", "fine"]


def row_of(name: str) -> tuple[str, ...]:
    """A pipeline's line in the table, found by running it."""
    pipe, arguments = MAKERS[name]()
    assert type(pipe).__name__ == name
    stock = draw(pipe, arguments)
    report = accelerated(pipe, arguments, {"spatial": PLAN}, **UNGUIDED)
    cells = {"pipeline": f"`{name}`", "stages": told(report, staged)}
    plan = PLAN if isinstance(find_adapter(pipe), Tokens) else None
    for policy, temporal in POLICIES.items():
        report = accelerated(pipe, arguments, {"spatial": plan, "temporal": temporal}, **UNGUIDED)
        cells[policy] = told(
            report, lambda report: staged(report) == bool(plan) and any(s.reused + s.partial for s in report.steps)
        )
    cells["strength"] = "-"
    if "strength" in inspect.signature(type(pipe).__call__).parameters:
        report = accelerated(pipe, arguments, {"spatial": plan}, strength=0.5, **UNGUIDED)
        cells["strength"] = told(report, lambda report: report.baseline_steps == STEPS // 2)
    report = accelerated(pipe, arguments, {"spatial": plan, "guidance": "early"})
    spared = {2} if plan else set(range(1, STEPS))  # steps of the fine stage, or those beyond t = 0.5
    cells["guidance"] = told(report, lambda report: report.guided_steps in {len(report.steps) - n for n in spared})
    if isinstance(report, Report) and any("changes nothing in this call" in notice for notice in report.notices):
        cells["guidance"] = "-"
    cells["off = stock"] = "yes" if torch.equal(draw(pipe, arguments), stock) else "no"
    return tuple(cells[column] for column in COLUMNS)


def line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def page(rows: list[tuple[str, ...]]) -> str:
    header = [line(COLUMNS), "|---" * len(COLUMNS) + "|"]
    return "\n".join([INTRODUCTION, *header, *map(line, rows)]) + "\n"


@pytest.fixture(scope="module")
def rows() -> Iterator[list[tuple[str, ...]]]:
    """Those found so far; written to the page if that is asked for, and all are there."""
    found: list[tuple[str, ...]] = []
    yield found
    if os.environ.get("WRITE_PIPELINES") and len(found) == len(LISTED):
        PAGE.write_text(page(found))


@pytest.mark.parametrize("name", LISTED)
def test_a_pipeline_does_what_the_table_says(name: str, rows: list[tuple[str, ...]]) -> None:
    assert name in MAKERS, f"{name} is listed by an adapter, but no test makes one"
    row = row_of(name)
    rows.append(row)
    if not os.environ.get("WRITE_PIPELINES"):
        assert line(row) in PAGE.read_text().splitlines(), f"write {PAGE.name} anew, see above, if this is right"


def test_the_page_holds_each_listed_pipeline_once_and_nothing_else() -> None:
    if os.environ.get("WRITE_PIPELINES"):
        pytest.skip("is being written")
    text = PAGE.read_text()
    there = [tuple(found.strip("| ").split(" | ")) for found in text.splitlines() if found.startswith("| `")]
    assert [row[0].strip("`") for row in there] == LISTED == list(MAKERS)
    assert text == page(there)
