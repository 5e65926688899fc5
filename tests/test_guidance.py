"""Guidance where it decides: what leaving it out costs and gives, exactly, and what is refused."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ralu_cache import RALU, Guidance, accelerate
from ralu_cache.plane.guidance import resolve_guidance
from tests.pairwise import covering
from tests.surroundings import CLOSE, FAMILIES, FORECAST, PLAN, POLICIES, Family, at, one_thread  # noqa: F401

UNTIL = Guidance(end=0.4)
LATER = Guidance(start=0.1, end=0.4)


def level(call: dict[str, Any]) -> float:
    time = float(call["timestep"].flatten()[0])
    return time if time <= 1 else time / 1000


def without_late(pipe: Any, family: Family, guidance: Guidance) -> Any:
    """A hook behind all others: where a step isn't guided, the pipeline gets the conditional prediction for both."""
    first: list[Tensor] = []
    before: list[float] = [2.0]

    def instead(module: Any, args: Any, call: dict[str, Any], output: Any) -> Any:
        if call["hidden_states"].shape[0] == 0:
            return output
        sigma = level(call)
        begins = sigma != before[0] or (family.name != "sd3" and len(first) % 2 == 0)
        before[0] = sigma
        guided = guidance.guides(0, [True], sigma)
        if family.name == "sd3":
            _, c = output[0].chunk(2)
            return output if guided else (torch.cat([c, c]),)
        if begins:
            first.append(output[0])
            return output
        first.append(output[0])
        return output if guided else (first[-2],)

    return pipe.transformer.register_forward_hook(instead, with_kwargs=True)


BATCHES = [(0,), (0, 1)]
BOTH = [False, True]
INSIDE = [policy for policy in POLICIES if policy not in FORECAST]
SETTINGS = [
    pytest.param(*row.values(), guidance, id=f"{kind}-" + "-".join(map(str, row.values())))
    for kind, guidance, policies in (
        ("until", UNTIL, [None, *INSIDE]),
        ("later", LATER, [None]),  # with a policy, what the other branch has computed meanwhile is another matter
    )
    for row in covering({"name": FAMILIES, "policy": policies, "stages": BOTH, "batch": BATCHES})
]


@pytest.mark.parametrize(("name", "policy", "stages", "batch", "guidance"), SETTINGS)
def test_steps_without_guidance_are_those_of_the_pipeline_given_c_for_both(
    name: str, policy: str | None, stages: bool, batch: tuple[int, ...], guidance: Guidance
) -> None:
    family = FAMILIES[name]
    options = {"spatial": PLAN if stages else None, "temporal": None if policy is None else POLICIES[policy]}
    pipe = family.make()
    with accelerate(pipe, **options, guidance=guidance) as handle:
        found = family.run(pipe, batch, guided=True)
        report = handle.report
    pipe = family.make()
    with accelerate(pipe, **options) as handle:
        full = family.run(pipe, batch, guided=True)
        hook = without_late(pipe, family, guidance)
        expected = family.run(pipe, batch, guided=True)
        hook.remove()
        whole = handle.report
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=CLOSE)
    assert not torch.allclose(found, full, atol=1e-3)
    assert report.guided_steps is not None and 0 < report.guided_steps < len(report.steps)
    assert f"guided {report.guided_steps} of {len(report.steps)} steps" in str(report)
    for step in report.steps:
        assert step.guided == guidance.guides(0, [True], step.sigma)
        assert step.samples == (2 if step.guided else 1) * len(batch)
    if whole is not None and policy is None:
        assert report.flops < whole.flops
        total = report.flops + report.guidance_saved_flops + report.temporal_saved_flops
        assert total == pytest.approx(whole.flops + whole.temporal_saved_flops, rel=1e-6)
        assert report.baseline_flops == pytest.approx(whole.baseline_flops, rel=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_early_is_until_the_fine_stage_or_half_of_the_time(name: str) -> None:
    family, pipe = FAMILIES[name], FAMILIES[name].make()
    with accelerate(pipe, spatial=PLAN, guidance="early") as handle:
        family.run(pipe, guided=True)
        kinds = [handle.report.stages[step.stage].kind for step in handle.report.steps]
        assert [step.guided for step in handle.report.steps] == [kind != "fine" for kind in kinds]
        by_stage = family.run(pipe, guided=True)
    with accelerate(pipe, spatial=PLAN, guidance=(True, True, False)):
        assert torch.equal(family.run(pipe, guided=True), by_stage)
    with accelerate(pipe, guidance="early") as handle:
        family.run(pipe, guided=True)
        assert [step.guided for step in handle.report.steps] == [step.sigma > 0.5 for step in handle.report.steps]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_scale_of_a_stage_is_that_of_the_call(name: str) -> None:
    """Whatever the pipeline's own formula, where it is affine; Qwen-Image's norm is taken after it."""
    family, pipe = FAMILIES[name], FAMILIES[name].make()
    scale = next(iter(family.guided))
    with accelerate(pipe, guidance=Guidance(scale=1.5)):
        found = family.run(pipe, guided=True)
    expected = family.run(pipe, guided=True, **{scale: 1.5})
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with accelerate(pipe, guidance=Guidance(scale=family.guided[scale])):
        torch.testing.assert_close(
            family.run(pipe, guided=True), family.run(FAMILIES[name].make(), guided=True), atol=CLOSE, rtol=CLOSE
        )


@pytest.mark.parametrize("stages", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_samples_whose_predictions_agree_stop_by_themselves(name: str, stages: bool) -> None:
    family, pipe = FAMILIES[name], FAMILIES[name].make()
    options = {"spatial": PLAN if stages else None, "guidance": Guidance(agreement=0.0)}
    with accelerate(pipe, **options) as handle:  # everything agrees that far, from the first step on
        family.run(pipe, (0, 1), guided=True)
        samples = [step.samples for step in handle.report.steps]
        assert samples[0] == 4 and min(samples) == 2 and samples == sorted(samples, reverse=True)
    similar = agreements(family, stages)
    between = (similar[0][0] + similar[1][0]) / 2
    with accelerate(pipe, **options | {"guidance": Guidance(agreement=between)}) as handle:
        together = family.run(pipe, (0, 1), guided=True)
        samples = [step.samples for step in handle.report.steps]
        assert samples[0] == 4 and 3 in samples, "one stops before the other"
        for sample in (0, 1):
            alone = family.run(pipe, (sample,), guided=True)
            torch.testing.assert_close(alone[0], together[sample], atol=CLOSE, rtol=CLOSE)


def agreements(family: Family, stages: bool) -> list[list[float]]:
    """Of two samples, the cosines of their two predictions in each step of their guided runs."""
    pipe = family.make()
    found: list[list[float]] = [[], []]
    calls: list[Tensor] = []
    pipe.transformer.register_forward_hook(lambda module, args, output: calls.append(output[0]))
    with accelerate(pipe, spatial=PLAN if stages else None):
        pipe.transformer.register_forward_hook(lambda module, args, output: calls.append(output[0]))
        family.run(pipe, (0, 1), guided=True)
    seen = calls[1::2]
    stacked = family.name == "sd3"
    for u, c in [output.chunk(2) for output in seen] if stacked else zip(seen[1::2], seen[::2], strict=True):
        for sample in (0, 1):
            cosine = torch.nn.functional.cosine_similarity(u[sample].flatten(), c[sample].flatten(), dim=0)
            found[sample].append(float(cosine))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_held_difference_stands_in_times_sigma(name: str) -> None:
    family, pipe = FAMILIES[name], FAMILIES[name].make()
    seen: list[tuple[float, Tensor]] = []

    def look(module: Any, args: Any, call: dict[str, Any], output: Any) -> None:
        seen.append((level(call), output[0]))

    held = Guidance(end=0.4, held="scaled")
    with accelerate(pipe, guidance=held) as handle:
        hook = pipe.transformer.register_forward_hook(look, with_kwargs=True)
        found = family.run(pipe, guided=True)
        hook.remove()
        guided = handle.report.guided_steps
        assert guided is not None and 0 < guided < len(handle.report.steps)
    with accelerate(pipe, guidance=UNTIL):
        assert not torch.allclose(found, family.run(pipe, guided=True), atol=1e-4)
    if name == "sd3":
        pairs = [(sigma, output.chunk(2)) for sigma, output in seen]
        (sigma, (u, c)), (now, (without, with_prompt)) = pairs[guided - 1], pairs[guided]
        torch.testing.assert_close(without, with_prompt - now / sigma * (c - u), atol=CLOSE, rtol=CLOSE)


def test_distilled_guidance_has_nothing_to_leave_out(caplog: pytest.LogCaptureFixture) -> None:
    """Said once, by name; the picture is the plain one."""
    family, pipe = FAMILIES["flux"], FAMILIES["flux"].make()
    plain = family.run(pipe)
    with caplog.at_level(logging.WARNING, logger="ralu_cache"), accelerate(pipe, guidance="early") as handle:
        for _ in range(2):
            assert torch.equal(family.run(pipe), plain)
        assert any("changes nothing" in notice for notice in handle.report.notices)
        assert handle.report.guided_steps is None
    assert sum("changes nothing" in record.getMessage() for record in caplog.records) == 1


def test_skip_layer_guidance_is_left_out_with_the_rest() -> None:
    """It is a third prediction, which SD3 combines with c: given c again, nothing is added."""
    family, pipe = FAMILIES["sd3"], FAMILIES["sd3"].make()
    skipping = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.9}
    with accelerate(pipe, guidance=UNTIL) as handle:
        plain = family.run(pipe, guided=True)
        found = family.run(pipe, guided=True, **skipping)
        calls = [(step.guided, step.calls) for step in handle.report.steps]
    assert not torch.allclose(found, plain, atol=1e-4) and (True, 2) in calls
    assert all(count == 1 for guided, count in calls if not guided)


def test_a_paused_branch_begins_anew() -> None:
    """What the unconditional branch had computed before it paused is not read when it comes back."""
    family, pipe = FAMILIES["flux"], FAMILIES["flux"].make()
    guidance = Guidance(stages=(True, False, True))
    with accelerate(pipe, spatial=PLAN, temporal=POLICIES["seacache"], guidance=guidance) as handle:
        family.run(pipe, guided=True)
        steps = handle.report.steps
    back = next(step for before, step in pairwise(steps) if step.guided and not before.guided)
    assert len(back.branches) == 2 and not back.branches[1].reused[0]
    assert back.branches[1].found[1:] == (0, 0), "nothing was there to be read"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"end": 1.5}, "end must be a number from 0 to 1, got 1.5"),
        ({"start": -0.1}, "start must be a number from 0 to 1, got -0.1"),
        ({"start": 0.6, "end": 0.4}, "must not end before it starts, got start=0.6 and end=0.4"),
        ({"start": float("nan")}, "start must be a number"),
        ({"stages": ()}, "one bool for each stage"),
        ({"stages": (1, 0)}, "one bool for each stage"),
        ({"stages": (True, False), "end": 0.5}, "not both"),
        ({"agreement": 2}, "agreement must be a number from 0 to 1, got 2"),
        ({"scale": -1.0}, "guidance scale must be a finite number"),
        ({"held": "plain"}, "held must be one of None, 'scaled', got 'plain'"),
    ],
)
def test_what_guidance_refuses(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(**spec)


@pytest.mark.parametrize(
    ("spec", "error"), [("late", ValueError), ("early:2", ValueError), ("early:x", ValueError), (0.5, TypeError)]
)
def test_unknown_names_are_refused(spec: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="guidance"):
        resolve_guidance(spec)
    pipe = FAMILIES["flux"].make()
    with pytest.raises(error, match="guidance"):
        accelerate(pipe, guidance=spec)
    assert type(pipe).__call__ is type(FAMILIES["flux"].make()).__call__, "nothing was changed"


def test_stages_of_another_number_are_refused() -> None:
    pipe = FAMILIES["flux"].make()
    accelerate(pipe, spatial=RALU(steps=(2, 2), ends=(0.5, 1.0)), guidance=(True, True, False))
    with pytest.raises(ValueError, match="guidance for 3 stages, but the plan has 2"):
        FAMILIES["flux"].run(pipe, guided=True)


def test_a_held_difference_goes_with_its_picture() -> None:
    """Of two pictures the first goes after guidance has ended: the second keeps its own difference."""
    family, pipe = FAMILIES["sd3"], FAMILIES["sd3"].make()

    def shrink(pipe: Any, tensors: dict[str, Any]) -> None:
        for name, value in tensors.items():
            tensors[name] = value[1:] if name == "latents" else value[[1, 3]]

    with accelerate(pipe, guidance=Guidance(end=0.2, held="scaled")) as handle:
        alone = family.run(pipe, (1,), guided=True)
        inputs = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
        found = family.run(
            pipe, (0, 1), guided=True, callback_on_step_end=at(6, shrink), callback_on_step_end_tensor_inputs=inputs
        )
        assert not handle.report.steps[6].guided and handle.report.steps[0].guided
    torch.testing.assert_close(found, alone, atol=CLOSE, rtol=CLOSE)
