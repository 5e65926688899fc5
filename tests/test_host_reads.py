"""How often a step makes the host wait for the device: once for each denoiser call whose decision depends on it.

On a device that is simulated (`tests.simulated_device`). Left out are what begins a run and transitions: they choose
the next regions, record them for the report and lay the tokens out anew, a few times a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from itertools import pairwise as neighbours
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.timing import step_ends
from ralu_cache import RALU, accelerate
from ralu_cache.engine.run import Run
from ralu_cache.history.attention import KeyValueMemory
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.temporal import Policy, resolve_temporal
from tests.adapter_conformance import LATER, Family
from tests.pairwise import pairwise
from tests.pipelines import make_pipeline, make_sd3_pipeline, pictures
from tests.simulated_device import DEVICE, OnDevice, Simulated, Wait, move

FAMILIES = {
    "flux": (make_pipeline, {}, 1),
    "flux, guided": (make_pipeline, {"true_cfg_scale": 2.5}, 2),
    "sd3, guided": (make_sd3_pipeline, {"guidance_scale": 4.0}, 1),
}  # how to make a pipeline, its guidance, denoiser calls a step
POLICIES = (
    "teacache:99", "seacache:99", "seacache:99,signal=plane", "taylorseer:2", "taylorseer:2,per_layer=true", "toca:2",
    "toca:2,score=even", "adaptive:2", "adaptive:2,ratio=0.3", "adaptive:2,ratio=0.3,transition=kept",
)  # fmt: skip
COUNTING = ("taylorseer:2", "taylorseer:2,per_layer=true")  # decide by the number of the step, for whole samples
LEAVING: dict[str, tuple[str | None, str | None]] = {
    "forecast": ("forecast:2", None), "both": ("forecast:2", "multistep"), "solver": (None, "dpm"),
}  # fmt: skip
STAGES = RALU(steps=(3, 3, 2))


class Apart:
    """A policy by which only every second sample reuses: then the samples of a call run in groups."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def start(self, batch: int, device: torch.device | str) -> Any:
        return _ApartState(self.policy.start(batch, device))


class _ApartState:
    def __init__(self, state: Any) -> None:
        self.state = state

    def __getattr__(self, name: str) -> Any:
        return getattr(self.state, name)

    def decide(self, situation: Any, signal: Tensor | None, previous: Tensor | None, readable: Tensor) -> Any:
        odd = torch.arange(len(readable), device=readable.device) % 2 == 1
        return self.state.decide(situation, signal, previous, readable & odd)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulated]:
    """The device; what a transition, or the first sight of the latents, reads is not logged."""
    device = Simulated()

    def unlogged(method: str) -> None:
        original = getattr(Run, method)

        def quiet(*args: Any, **kwargs: Any) -> Any:
            with device.log.paused():
                return original(*args, **kwargs)

        monkeypatch.setattr(Run, method, quiet)

    unlogged("_transition")
    unlogged("_open")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for thousands of tiny operations
    with device:
        yield device
    torch.set_num_threads(threads)


def steps_of(
    device: Simulated, family: str, spatial: Any = None, temporal: Any = None, solver: str | None = None
) -> list[list[Wait]]:
    """What each step waited for; the first one's set-up, the size of the grid, is checked here and left out."""
    make, guidance, _ = FAMILIES[family]
    pipe = make()
    move(pipe.transformer)
    call = {"guidance_scale": 1.0, **pictures([0, 1]), **guidance, "height": 32, "width": 32, "num_inference_steps": 5}
    call = {name: OnDevice(value) if isinstance(value, Tensor) else value for name, value in call.items()}
    ends: list[int] = []

    def end() -> None:
        ends.append(len(device.log.waits))

    with (
        started(device, pipe) as begin,
        accelerate(pipe, spatial=spatial, temporal=temporal, solver=solver) as handle,
        step_ends(pipe, end),
    ):
        images = pipe(**call).images
        report = handle.report
    assert images.device == DEVICE
    assert temporal is None or (report is not None and any(step.computed < step.asked for step in report.steps))
    assert len(ends) == (call["num_inference_steps"] if report is None else len(report.steps))
    waits = device.log.waits
    first = [wait for wait in waits[begin[0] : ends[0]] if "rows, columns" not in wait.line]
    assert ends[0] - begin[0] - len(first) <= 1
    return [first, *(waits[a:b] for a, b in neighbours(ends))]


@contextmanager
def started(device: Simulated, pipe: Any) -> Iterator[list[int]]:
    """Gives where in the log the first denoiser call begins."""
    begin: list[int] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: begin.append(len(device.log.waits)))
    yield begin
    hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_run_never_waits(simulated: Simulated, family: str) -> None:
    """But at its first step, if the pipeline does not say where it begins: SD3's searches the levels."""
    assert not any(steps_of(simulated, family)[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_alone_never_wait(simulated: Simulated, family: str) -> None:
    assert not any(steps_of(simulated, family, STAGES))


@pytest.mark.parametrize(("temporal", "spatial"), [*zip(POLICIES, cycle((None, STAGES)), strict=False)])
def test_a_step_waits_for_its_decision_alone(simulated: Simulated, temporal: str, spatial: RALU | None) -> None:
    """Not at all where nothing is looked at: neither at a signal, nor at which tokens are to be computed."""
    most = 0 if temporal in COUNTING else 1
    for number, waits in enumerate(steps_of(simulated, "flux", spatial, temporal)):
        assert len(waits) <= most, f"step {number}: {waits}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temporal", COUNTING)
def test_counting_steps_never_waits(simulated: Simulated, family: str, temporal: str) -> None:
    """Whatever the guidance, and where samples go apart."""
    policy = resolve_temporal(temporal)
    assert policy is not None
    for number, waits in enumerate(steps_of(simulated, family, STAGES, Apart(policy))):
        assert not waits, f"step {number}: {waits}"


def test_a_preset_of_stages_under_a_counting_policy_never_waits(simulated: Simulated) -> None:
    for number, waits in enumerate(steps_of(simulated, "flux", "ralu-8x", "taylorseer:3")):
        assert not waits, f"step {number}: {waits}"


@pairwise(family=FAMILIES, leaving=LEAVING, stages=[False, True])
def test_forecasts_and_solvers_never_wait(simulated: Simulated, family: str, leaving: str, stages: bool) -> None:
    """But where a run without stages begins, see `test_a_stock_run_never_waits`."""
    steps = steps_of(simulated, family, STAGES if stages else None, *LEAVING[leaving])
    for number, waits in enumerate(steps if stages else steps[1:]):
        assert not waits, f"step {number}: {waits}"


@pytest.mark.parametrize(
    ("temporal", "family"),
    [
        (temporal, family)
        for number, temporal in enumerate(("seacache:99", "toca:2", "adaptive:2,ratio=0.3"))
        for place, family in enumerate(FAMILIES)
        if number != place  # two policies a family, two families a policy
    ],
)
def test_samples_that_go_apart_wait_no_more(simulated: Simulated, family: str, temporal: str) -> None:
    policy = resolve_temporal(temporal)
    assert policy is not None
    for number, waits in enumerate(steps_of(simulated, family, STAGES, Apart(policy))):
        assert len(waits) <= FAMILIES[family][2], f"step {number}: {waits}"


def test_packing_unequal_numbers_of_rows_never_waits() -> None:
    """On a GPU each layer asks for it."""
    device = Simulated()
    with device:
        memory = KeyValueMemory(TokenLayout.coarse(2, 2, 3, patch=2, device=DEVICE))
        tokens = OnDevice(torch.tensor([[4, 4, 4], [0, 2, 5]]))
        rows = memory.begin(1, *(torch.zeros(2, 6, device=DEVICE) for _ in range(2)), tokens=tokens, counts=(1, 3))
        packing = rows._packing(offset=1, fixed=1)
        index = packing.index
        assert not device.log.waits and packing is rows._packing(offset=1, fixed=1)
    assert packing.lengths == (2, 4) and isinstance(index, OnDevice) and index.values.tolist() == [0, 1, 4, 5, 6, 7]


def test_the_log_knows_what_waits() -> None:
    """Each of these waits on a GPU; the rest of an ordinary step does not."""
    device = Simulated()
    with device:
        there = torch.arange(6.0, device=DEVICE)
        mask = there > 2
        assert (there * 2 + there.flip(0)).device == DEVICE and not device.log.waits
        for read in (
            lambda: there[2].item(), lambda: float(there[0]), lambda: bool(mask.any()), lambda: there.tolist(),
            lambda: mask.nonzero(), lambda: there[mask], lambda: there[torch.tensor([1])], lambda: there.cpu(),
            lambda: torch.equal(there, there), lambda: torch.tensor([1.0, 2.0], device=DEVICE),
            lambda: torch.ones(3).to(DEVICE),
        ):  # fmt: skip
            before = len(device.log.waits)
            read()
            assert len(device.log.waits) == before + 1, device.log.waits
        with pytest.raises(RuntimeError, match="both host and device"):
            _ = there + torch.ones(6)


@pytest.mark.slow
@pytest.mark.parametrize("family", LATER, ids=str)
def test_later_families_bring_everything_to_the_device(simulated: Simulated, family: Family) -> None:
    """What stands on the host where a tensor of the device is needed raises."""
    pipe = family.make()
    for model in (pipe.transformer, getattr(pipe, "vae", None)):
        if model is not None:
            move(model)

    def there(value: Any) -> Any:
        return [OnDevice(part) for part in value] if isinstance(value[0], Tensor) else value

    place = LATER.index(family)
    given = family.pictures((0, 1), **(family.guided if place % 2 else family.unguided))
    given = {
        name: OnDevice(value) if isinstance(value, Tensor) else there(value) if isinstance(value, list) else value
        for name, value in given.items()
    }
    temporal = ("taylorseer:2", "adaptive:2,ratio=0.3", "toca:2")[place % 3] if family.layered else "taylorseer:2"
    with accelerate(pipe, spatial=family.plan(STAGES), temporal=temporal) as handle:
        pipe(**given, return_dict=False)
    assert handle.report is not None and any(step.computed < step.asked for step in handle.report.steps)
