"""What surrounds a pipeline call: families, settings, bystanders, threads, callbacks and loops of one's own.

All pipelines are tiny random ones of stock classes. Nothing here knows the inside of the library.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from unittest import mock

import diffusers
import PIL.Image
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import group_offloading
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor

from ralu_cache import RALU, Adaptive, Forecast, Report, SeaCache, TaylorSeer, TeaCache, ToCa, accelerate
from tests.pipelines import (
    make_controlnet,
    make_pipeline,
    make_sd3_controlnet,
    make_sd3_pipeline,
    pictures,
    random_image,
)
from tests.pipelines_flux2 import flux2_pictures, make_flux2_pipeline
from tests.pipelines_flux_kin import (
    chroma_pictures,
    longcat_pictures,
    make_chroma_pipeline,
    make_longcat_pipeline,
)
from tests.pipelines_hunyuan import hunyuan_videos, make_hunyuan_pipeline
from tests.pipelines_ltx import ltx_videos, make_ltx_pipeline
from tests.pipelines_qwen import make_qwen_controlnet, make_qwen_pipeline, qwen_pictures
from tests.pipelines_z_image import make_z_image_pipeline, z_image_pictures
from tests.wan_pipelines import make_wan_pipeline, videos

HEIGHT, WIDTH, STEPS = 32, 48, 9  # pixels of the pictures, steps of the stock schedule
CLOSE = 1e-5  # between the same picture in two batches: sums of float32 in another order
Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For thousands of tiny operations; a test module takes it by naming it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- families


@dataclass(frozen=True)
class Family:
    """make: a new pipeline with the same weights each time. pictures: arguments of the pictures of these numbers.

    guided, unguided: further arguments that switch classifier-free guidance on and off. blocks: where the model keeps
    them. mu: what the scheduler's `set_timesteps` needs in a loop of one's own.
    """

    name: str
    make: Callable[..., Any]
    pictures: Callable[..., dict[str, Any]]
    guided: Mapping[str, Any]
    unguided: Mapping[str, Any]
    blocks: str
    mu: float | None = None

    def __str__(self) -> str:
        return self.name

    def arguments(self, samples: Sequence[int] = (0,), guided: bool = False, **overrides: Any) -> dict[str, Any]:
        given = self.pictures(samples, **(self.guided if guided else self.unguided), num_inference_steps=STEPS)
        return given | {"return_dict": False} | overrides

    def run(self, pipe: Any, samples: Sequence[int] = (0,), guided: bool = False, **overrides: Any) -> Tensor:
        """The latents that the pipeline returns for these pictures."""
        return pipe(**self.arguments(samples, guided, **overrides))[0]

    def block(self, pipe: Any) -> Any:
        """The first transformer block."""
        return getattr(pipe.transformer, self.blocks)[0]


SMALL = {"height": HEIGHT, "width": WIDTH}
FAMILIES = {
    family.name: family
    for family in (
        Family(
            "flux", make_pipeline, partial(pictures, **SMALL), {"true_cfg_scale": 2.5}, {"true_cfg_scale": 1.0},
            "transformer_blocks", mu=0.6,
        ),
        Family(
            "sd3", make_sd3_pipeline, partial(pictures, **SMALL), {"guidance_scale": 2.5}, {"guidance_scale": 1.0},
            "transformer_blocks",
        ),
        Family(
            "qwen", make_qwen_pipeline, partial(qwen_pictures, **SMALL), {"true_cfg_scale": 2.5},
            {"true_cfg_scale": 1.0}, "transformer_blocks", mu=0.6,
        ),
        Family("wan", make_wan_pipeline, videos, {"guidance_scale": 2.5}, {"guidance_scale": 1.0}, "blocks"),
    )
}  # fmt: skip

LATER = {
    family.name: family
    for family in (
        Family(
            "flux2", make_flux2_pipeline, partial(flux2_pictures, **SMALL), {"guidance_scale": 2.5},
            {"guidance_scale": 1.0}, "transformer_blocks",
        ),
        Family(
            "z-image", make_z_image_pipeline, partial(z_image_pictures, **SMALL), {"guidance_scale": 2.5},
            {"guidance_scale": 0.0}, "layers",
        ),
        Family(
            "chroma", make_chroma_pipeline, partial(chroma_pictures, **SMALL), {"guidance_scale": 2.5},
            {"guidance_scale": 1.0}, "transformer_blocks",
        ),
        Family(
            "longcat", make_longcat_pipeline, partial(longcat_pictures, **SMALL), {"guidance_scale": 2.5},
            {"guidance_scale": 1.0}, "transformer_blocks",
        ),
        Family(
            "hunyuan", make_hunyuan_pipeline, hunyuan_videos, {"guidance_scale": 2.5}, {"guidance_scale": 1.0},
            "transformer_blocks",
        ),
        Family(
            "ltx", make_ltx_pipeline, ltx_videos, {"guidance_scale": 2.5}, {"guidance_scale": 1.0},
            "transformer_blocks",
        ),
    )
}  # fmt: skip
"""These meet fewer policies in `tests/test_matrix.py`, and are in no other test of surroundings."""


@contextmanager
def no_mode() -> Iterator[None]:
    """Whichever test asks for it first, what is kept for all is drawn in none of PyTorch's modes."""
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        yield


@cache
def stock(family: str, samples: tuple[int, ...] = (0,), guided: bool = False) -> Tensor:
    """The picture of a pipeline that was just made and never touched."""
    with no_mode():
        return FAMILIES[family].run(FAMILIES[family].make(), samples, guided)


# ---- settings

PLAN = RALU(split=(3, 3, 3))
POLICIES = {
    "teacache": TeaCache(threshold=0.4, coefficients="identity"),
    "seacache": SeaCache(threshold=0.8, order=1),
    "taylorseer": TaylorSeer(interval=3),
    "toca": ToCa(interval=3, ratio=0.3, first=1),
    "adaptive": Adaptive(interval=3, ratio=0.3),
    "forecast": Forecast(interval=3),
    "predicted": SeaCache(threshold=0.8, order=1, reuse="prediction"),
}


FORECAST = ("forecast", "predicted")  # these reuse predictions, the others what is inside of the model


@dataclass(frozen=True)
class Setting:
    """A family, a temporal policy, and whether the run has stages."""

    family: Family
    policy: str
    stages: bool

    def __str__(self) -> str:
        return f"{self.family}-{self.policy}-{'stages' if self.stages else 'alone'}"

    @property
    def odd(self) -> bool:
        """For what alternates: half of the settings, of each family and each policy."""
        return ([*FAMILIES, *LATER].index(self.family.name) + [*POLICIES, "none"].index(self.policy)) % 2 == 1

    @property
    def options(self) -> dict[str, Any]:
        """For `accelerate`."""
        return {"spatial": PLAN if self.stages else None, "temporal": POLICIES.get(self.policy)}


def fast(setting: Setting) -> Tensor:
    """The picture of a pipeline that was just made, accelerated so, in its first call."""
    return _fast(setting.family.name, setting.policy, setting.stages)


@cache
def _fast(family: str, policy: str, stages: bool) -> Tensor:
    setting = Setting(FAMILIES[family], policy, stages)
    with no_mode(), accelerate(pipe := setting.family.make(), **setting.options):
        return setting.family.run(pipe)


EVERY = [
    Setting(family, policy, stages) for family in FAMILIES.values() for policy in POLICIES for stages in (False, True)
]
STAGED = [Setting(family, "none", True) for family in FAMILIES.values()]
SOME = [setting for number, setting in enumerate(EVERY) if (number // 2 + setting.stages) % 2]  # each family and policy
HALF = [setting for number, setting in enumerate(SOME) if number % 4 < 2]  # each of both, with stages and without
OTHER_HALF = [setting for number, setting in enumerate(SOME) if number % 4 > 1]
FEW = [HALF[number] for number in (0, 1, 5, 6, 9, 10, 12, 13)]  # each policy; each family with stages and without
OTHER_FEW = [OTHER_HALF[number] for number in (0, 1, 3, 4, 8, 9, 10, 13)]
few = pytest.mark.parametrize("setting", FEW, ids=str)
other_few = pytest.mark.parametrize("setting", OTHER_FEW, ids=str)
half = pytest.mark.parametrize("setting", HALF, ids=str)
other_half = pytest.mark.parametrize("setting", OTHER_HALF, ids=str)
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=str)


def these(*chosen: tuple[str, str, bool]) -> pytest.MarkDecorator:
    """A test's settings outright: (family, policy, stages)."""
    settings = [Setting(FAMILIES[family], policy, stages) for family, policy, stages in chosen]
    return pytest.mark.parametrize("setting", settings, ids=str)


def served(report: Report | None) -> int:
    """How many samples of how many calls passed over blocks, all of their tokens or some."""
    assert report is not None
    return sum(step.reused + step.partial for step in report.steps)


def check_accelerated(setting: Setting, report: Report | None) -> None:
    """The run was complete, and all that was asked for happened."""
    assert report is not None and report.completed
    assert (setting.policy == "none") == (served(report) == 0), "reused where it should have, and only there"
    kinds = [stage.kind for stage in report.stages]
    assert kinds == (["coarse", "mixed", "fine"] if setting.stages else kinds[:1])


# ---- who else is there


def bystander(pipe: Any) -> Any:
    """A pipeline of the same class on the same transformer, with a scheduler of its own."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    other = type(pipe)(**(pipe.components | {"scheduler": scheduler}))
    other.set_progress_bar_config(disable=True)
    return other


@contextmanager
def recorded(module: Any) -> Iterator[list[dict[str, Any]]]:
    """The keyword arguments of the module's calls, as a hook that comes last sees them."""
    calls: list[dict[str, Any]] = []
    hook = module.register_forward_pre_hook(lambda net, args, given: calls.append(given), with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@cache
def forward_arguments(family: str, samples: tuple[int, ...] = (0,)) -> tuple[dict[str, Any], ...]:
    """The denoiser's arguments in the first step of a stock guided run: one call, or two."""
    pipe = FAMILIES[family].make()
    with no_mode(), recorded(pipe.transformer) as calls:
        FAMILIES[family].run(pipe, samples, guided=True, num_inference_steps=2)
    return tuple(calls[: len(calls) // 2])


def forward(family: Family, model: Any) -> Tensor:
    """The model, called by hand."""
    with torch.no_grad():
        return model(**forward_arguments(family.name)[0])[0]


@cache
def stock_forward(family: str) -> Tensor:
    with no_mode():
        return forward(FAMILIES[family], FAMILIES[family].make().transformer)


def together(*works: Callable[[], Any]) -> list[Any]:
    """Each in a thread of its own, all at once; the first error is raised again."""
    results: dict[int, Any] = {}
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def work(number: int) -> None:
        try:
            start.wait()
            results[number] = works[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(works))]


# ---- callbacks


def at(step: int, do: Callable[..., Any]) -> Callback:
    """A callback that at this step calls `do(pipe, tensors)`; what that returns, if anything, replaces the tensors."""

    def callback(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return tensors if number != step else do(pipe, tensors) or tensors

    return callback


@contextmanager
def after(pipe: Any, call: int, do: Callable[..., Any]) -> Iterator[Callback]:
    """As `at`, but for the first callback at or after the denoiser's call of this number, counted from 1.

    On stages, which have levels of their own, that says more than the number of a step.
    """
    done: list[None] = []
    with recorded(pipe.transformer) as calls:

        def callback(given: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if done or len(calls) < call:
                return tensors
            done.append(None)
            return do(given, tensors) or tensors

        yield callback
    assert done, f"{len(calls)} calls, and no callback after that of number {call}"


def looking(do: Callable[[], Any]) -> Callback:
    """A callback that calls `do()` after every step."""

    def callback(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        do()
        return tensors

    return callback


# ---- weights that are away


class Away(ModelHook):
    """A hook of `accelerate`, as model offload has them: the weights are on `meta` but while the module runs."""

    execution_device = torch.device("cpu")

    def __init__(self) -> None:
        self.weights: list[tuple[dict[str, Any], str, Any]] = []

    def init_hook(self, module: Any) -> Any:
        for part in module.modules():
            places = part._parameters
            self.weights += [(places, name, weight) for name, weight in places.items() if weight is not None]
        self.leave()
        return module

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.bring()
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        self.leave()
        return output

    def detach_hook(self, module: Any) -> Any:
        self.bring()
        return module

    def bring(self) -> None:
        for places, name, weight in self.weights:
            places[name] = weight

    def leave(self) -> None:
        for places, name, weight in self.weights:
            places[name] = torch.nn.Parameter(weight.to("meta"), requires_grad=False)


def offload_submodules(pipe: Any) -> Callable[[], None]:
    """Sequential offload: each layer's weights are on `meta` but while it runs. Gives how to undo it."""
    for model in (pipe.transformer, pipe.vae):
        cpu_offload(model, execution_device=torch.device("cpu"))
    return lambda: remove_hooks(pipe)


def offload_model(pipe: Any) -> Callable[[], None]:
    """All weights of a model are on `meta` but while it runs."""
    for model in (pipe.transformer, pipe.vae):
        add_hook_to_module(model, Away())
    return lambda: remove_hooks(pipe)


def remove_hooks(pipe: Any) -> None:
    for model in (pipe.transformer, pipe.vae):
        remove_hook_from_module(model, recurse=True)


def offload_groups(pipe: Any) -> Callable[[], None]:
    """Group offload to the disk: within `spoilt_groups`, a leaf's weights are NaN but while it runs. It stays."""
    folder = tempfile.mkdtemp()
    pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=folder)
    return lambda: None


OFFLOADS = {"submodules": offload_submodules, "model": offload_model, "groups": offload_groups}


class Copies:
    """A stream of a device that is not there: copies are made when the host waits for it, and not before."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def copy(self, source: Tensor, target: Tensor) -> None:
        self._waiting.append((source, target))

    def synchronize(self) -> None:
        for source, target in self._waiting:
            target.copy_(source)
        self._waiting.clear()

    def drop(self, targets: Collection[Tensor]) -> None:
        """What was to be copied there is of no use any more."""
        gone = {tensor.data_ptr() for tensor in targets}
        self._waiting = [pair for pair in self._waiting if pair[1].data_ptr() not in gone]


class StreamedGroup(ModuleGroup):
    """A group whose weights are NaN while they are away, and until the copy that brings them was waited for.

    offload_device: the weights' own while they are away, for that is what the hooks ask; else no device.
    """

    @torch.no_grad()
    def _init_cpu_param_dict(self) -> dict[Tensor, Tensor]:
        held = [tensor for module in self.modules for tensor in (*module.parameters(), *module.buffers())]
        return {tensor: tensor.detach().clone() for tensor in (*held, *self.parameters, *self.buffers)}

    @torch.no_grad()
    def onload_(self) -> None:
        stream = self.stream or Copies()  # what no layer holds is brought at once
        stream.synchronize()  # as stock does: for the copy before
        for tensor, kept in self.cpu_param_dict.items():
            tensor.data.fill_(torch.nan)
            stream.copy(kept, tensor.data)
        if not self.non_blocking or self.stream is None:
            stream.synchronize()
        self.offload_device = None

    @torch.no_grad()
    def offload_(self) -> None:
        if self.stream is not None:
            self.stream.drop(self.cpu_param_dict)
        for tensor in self.cpu_param_dict:
            tensor.data.fill_(torch.nan)
        self.offload_device = torch.device("cpu")


def offload_streams(pipe: Any) -> None:
    """Group offload with a stream, and the prefetching that comes with it, on a device that is not there."""
    config = group_offloading.GroupOffloadingConfig(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"),
        offload_type=group_offloading.GroupOffloadingType.LEAF_LEVEL, non_blocking=True, record_stream=False,
        low_cpu_mem_usage=False, num_blocks_per_group=None, stream=Copies(),
    )  # fmt: skip
    with mock.patch.object(group_offloading, "ModuleGroup", StreamedGroup):
        group_offloading._apply_group_offloading(pipe.transformer, config)


@contextmanager
def spoilt_groups() -> Iterator[None]:
    """While it lasts, groups that leave their weights on the disk fill what stays with NaN."""
    leave = ModuleGroup._offload_to_disk

    def leave_spoilt(group: ModuleGroup) -> None:
        leave(group)
        for tensor in group.tensor_to_key:
            tensor.data.fill_(torch.nan)

    with mock.patch.object(ModuleGroup, "_offload_to_disk", leave_spoilt):
        yield


# ---- LoRA

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "proj_out", "net.2", "linear_1"]


def add_lora(pipe: Any, name: str = "a") -> None:
    """A LoRA of random weights on attention, MLPs, the head and the embedding of time. Skips without peft."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=LORA_TARGETS)
    pipe.transformer.add_adapter(config, name)


# ---- loops of one's own


def rows_of(arguments: Mapping[str, Any], batch: int, rows: Sequence[int]) -> dict[str, Any]:
    """The denoiser's arguments for some samples of a batch."""
    chosen: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.shape[:1] == (batch,) and not name.endswith("_ids"):
            chosen[name] = value[list(rows)]
        elif name == "img_shapes":
            chosen[name] = [value[row] for row in rows]
        else:
            chosen[name] = value
    return chosen


def own_loop(
    family: Family,
    pipe: Any,
    branches: Callable[[int], Sequence[str]] = lambda step: ("cond", "uncond"),
    samples: Sequence[int] = (0, 1),
    keep: Callable[[int, int], Sequence[int]] = lambda step, batch: range(batch),
    scale: float = 2.5,
    negative: float = 1.0,
    before_step: Callable[[int], Any] = lambda step: None,
) -> Tensor:
    """A sampling loop as users write it, on the denoiser and `pipe.scheduler`.

    branches: of a step, which of "cond" and "uncond" are called, in that order; both are combined as guidance of this
    scale does. negative: what the words of "uncond" are multiplied by. keep: of a step, which of the present samples go
    on to it.
    """
    given = branch_arguments(family, samples)
    given["uncond"]["encoder_hidden_states"] = negative * given["uncond"]["encoder_hidden_states"]
    latents = given["cond"]["hidden_states"]
    per_unit = 1000.0 if family.name in ("flux", "qwen") else 1.0
    pipe.scheduler.set_timesteps(STEPS, mu=family.mu)
    with torch.no_grad():
        for step, time in enumerate(pipe.scheduler.timesteps):
            rows = list(keep(step, len(latents)))
            if len(rows) < len(latents):
                given = {name: rows_of(call, len(latents), rows) for name, call in given.items()}
                latents = latents[rows]
            before_step(step)
            found = {}
            for name in branches(step):
                call = given[name] | {"hidden_states": latents, "timestep": time.expand(len(latents)) / per_unit}
                found[name] = pipe.transformer(**call)[0]
            base = found.get("uncond", found["cond"])
            prediction = base + scale * (found["cond"] - base) if len(found) == 2 else base
            latents = pipe.scheduler.step(prediction, time, latents, return_dict=False)[0]
    return latents


def branch_arguments(family: Family, samples: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The denoiser's arguments in the first step, for "cond" and "uncond"."""
    calls, count = forward_arguments(family.name, tuple(samples)), len(samples)
    if len(calls) == 1:  # SD3 stacks its branches, the negative one first; here each has a call of its own
        calls = tuple(rows_of(calls[0], 2 * count, rows) for rows in (range(count, 2 * count), range(count)))
    return {name: dict(call) for name, call in zip(("cond", "uncond"), calls, strict=True)}


# ---- pipelines that start in mid-schedule


def mask() -> PIL.Image.Image:
    """The right half is to be drawn."""
    drawn = PIL.Image.new("L", (WIDTH, HEIGHT))
    drawn.paste(255, (WIDTH // 2, 0, WIDTH, HEIGHT))
    return drawn


def _flux(name: str, *given: str, channels: int = 16, **components: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: make_pipeline(
        getattr(diffusers, name), channels, **{part: make() for part, make in components.items()}
    )


ENTERING: dict[str, tuple[str, Callable[[], Any], tuple[str, ...]]] = {
    "flux img2img": ("flux", _flux("FluxImg2ImgPipeline"), ("image",)),
    "flux inpaint": ("flux", _flux("FluxInpaintPipeline"), ("image", "mask_image")),
    "flux control img2img": ("flux", _flux("FluxControlImg2ImgPipeline", channels=32), ("image", "control_image")),
    "flux control inpaint": (
        "flux", _flux("FluxControlInpaintPipeline", channels=32), ("image", "mask_image", "control_image")
    ),
    "flux controlnet img2img": (
        "flux", _flux("FluxControlNetImg2ImgPipeline", controlnet=make_controlnet), ("image", "control_image")
    ),
    "flux controlnet inpaint": (
        "flux", _flux("FluxControlNetInpaintPipeline", controlnet=make_controlnet),
        ("image", "mask_image", "control_image"),
    ),
    "sd3 img2img": ("sd3", lambda: make_sd3_pipeline(diffusers.StableDiffusion3Img2ImgPipeline), ("image",)),
    "sd3 inpaint": (
        "sd3", lambda: make_sd3_pipeline(diffusers.StableDiffusion3InpaintPipeline, channels=16),
        ("image", "mask_image"),
    ),
    "qwen img2img": ("qwen", lambda: make_qwen_pipeline(diffusers.QwenImageImg2ImgPipeline), ("image",)),
    "qwen inpaint": ("qwen", lambda: make_qwen_pipeline(diffusers.QwenImageInpaintPipeline), ("image", "mask_image")),
}  # fmt: skip
CONTROLNETS: dict[str, tuple[str, Callable[[], Any]]] = {
    "flux": ("flux", _flux("FluxControlNetPipeline", controlnet=make_controlnet)),
    "sd3": (
        "sd3",
        lambda: make_sd3_pipeline(diffusers.StableDiffusion3ControlNetPipeline, controlnet=make_sd3_controlnet()),
    ),
    "qwen": (
        "qwen", lambda: make_qwen_pipeline(diffusers.QwenImageControlNetPipeline, controlnet=make_qwen_controlnet())
    ),
}  # fmt: skip


def accepted(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the pipeline's call knows."""
    code = type(pipe).__call__
    while hasattr(code, "__wrapped__"):
        code = code.__wrapped__
    names = code.__code__.co_varnames[: code.__code__.co_argcount]
    return {name: value for name, value in given.items() if name in names}


def entering(
    kind: str, pipe: Any, strength: float, samples: Sequence[int] = (0,), guided: bool = False
) -> dict[str, Any]:
    """The arguments with which such a pipeline draws on a picture, the same for each sample."""
    family, _, wants = ENTERING[kind]
    known = {"image": random_image(HEIGHT, WIDTH), "control_image": random_image(HEIGHT, WIDTH), "mask_image": mask()}
    pictures_given = {name: known[name] if len(samples) == 1 else [known[name]] * len(samples) for name in wants}
    return accepted(pipe, FAMILIES[family].arguments(samples, guided) | pictures_given | {"strength": strength})


def draw(pipe: Any, given: Mapping[str, Any]) -> Tensor:
    """The picture of these arguments, which may be used again: generators start from their seeds."""
    torch.manual_seed(0)  # some pipelines encode their control image with it
    generators = [torch.Generator().manual_seed(generator.initial_seed()) for generator in given["generator"]]
    return pipe(**{**given, "generator": generators})[0]
