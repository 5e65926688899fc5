"""A branch is the samples that it computes: guidance, batch and prompt may change in mid-run, and nothing is mixed up.

Where guidance weighs nothing, the picture does not depend on the negative prompt, whichever branches came and went:
what is reused for one of them was computed for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from diffusers.callbacks import SD3CFGCutoffCallback
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache import Adaptive, SeaCache, TaylorSeer, TeaCache, accelerate
from ralu_cache.engine.identity import Identity
from tests import surroundings
from tests.surroundings import (
    CLOSE,
    FAMILIES,
    FORECAST,
    PLAN,
    POLICIES,
    STAGED,
    STEPS,
    Family,
    Setting,
    add_lora,
    after,
    at,
    branch_arguments,
    check_accelerated,
    forward_arguments,
    own_loop,
    served,
    stock,
)

one_thread = surroundings.one_thread

WEIGHTLESS = 1.000001  # the least guidance that pipelines still compute both branches for
SLIGHT = 1e-5  # far more than what a millionth of guidance changes
NEGATIVE = -3.0  # times the negative prompt is another one
NEVER = TeaCache(threshold=0.0)
BOTH, ALONE = ("cond", "uncond"), ("cond",)
PATTERNS = {
    "cut off": lambda step: BOTH if step < 4 else ALONE,
    "started": lambda step: ALONE if step < 4 else BOTH,
    "off and on": lambda step: ALONE if 3 <= step < 7 else BOTH,
    "every other step": lambda step: ALONE if step % 2 else BOTH,
    "in turn": lambda step: BOTH[::-1] if step % 2 else BOTH,
    "cut off, the other order": lambda step: BOTH[::-1] if step < 4 else ALONE,
}
REUSING = [policy for policy in POLICIES if policy not in FORECAST]  # the others: see test_forecasts.py
INSIDE = [
    Setting(family, policy, (number + place // 2) % 2 == 0)
    for place, family in enumerate(FAMILIES.values())
    for number, policy in enumerate(REUSING)
]  # each family with each policy; of sd3 and wan one has a policy on stages, and of flux and qwen
STACKED = [setting for setting in INSIDE if setting.family.name == "sd3"]
BY_CALLBACK = [setting for setting in INSIDE if setting.family.name in ("sd3", "wan")]
IN_LOOPS = [setting for setting in INSIDE if setting not in BY_CALLBACK]
TENSORS = {
    "sd3": ["latents", "prompt_embeds", "pooled_prompt_embeds"],
    "wan": ["latents", "prompt_embeds", "negative_prompt_embeds"],
}


def words(family: Family, negative: float = 1.0, **overrides: Any) -> dict[str, Any]:
    """Call arguments in which the negative prompt is multiplied by a number."""
    arguments = family.arguments(guided=True) | overrides
    return {
        name: negative * value if name.startswith("negative") and value.is_floating_point() else value
        for name, value in arguments.items()
        if isinstance(value, Tensor) or not name.startswith("negative")
    }


# ---- guidance comes and goes

MET = [
    (family, pattern)
    for number, family in enumerate(FAMILIES.values())
    for place, pattern in enumerate(PATTERNS)
    if (number + place) % 2
]

@cache
def plain_loop(family: str, pattern: str, negative: float) -> Tensor:
    return own_loop(FAMILIES[family], FAMILIES[family].make(), PATTERNS[pattern], (0,), negative=negative)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=str)
def test_branches_that_come_and_go_in_a_loop_of_ones_own(family: Family, pattern: str) -> None:
    place, settings = list(PATTERNS).index(pattern), [setting for setting in INSIDE if setting.family is family]
    setting = settings[(place + list(FAMILIES).index(family.name)) % len(settings)]  # each family with each policy
    pipe, found = family.make(), []
    with accelerate(pipe, **setting.options) as handle:
        for negative in (1.0, NEGATIVE):
            with handle.call():
                found.append(own_loop(family, pipe, PATTERNS[pattern], (0,), scale=WEIGHTLESS, negative=negative))
        check_accelerated(setting, handle.report)
        calls = [len(PATTERNS[pattern](step)) for step in range(STEPS)]
        assert [step.calls for step in handle.report.steps] == calls
    torch.testing.assert_close(*found, atol=SLIGHT, rtol=SLIGHT)


@pytest.mark.parametrize(("family", "pattern"), MET, ids=str)
def test_where_guidance_weighs_the_negative_prompt_counts(family: Family, pattern: str) -> None:
    """Or the test above could not fail."""
    one, other = (plain_loop(family.name, pattern, scale) for scale in (1.0, NEGATIVE))
    assert not torch.allclose(one, other, atol=100 * SLIGHT)


@pytest.mark.parametrize(("family", "pattern"), MET, ids=str)
def test_where_nothing_is_reused_branches_may_come_and_go(family: Family, pattern: str) -> None:
    with accelerate(pipe := family.make(), temporal=NEVER) as handle, handle.call():
        assert torch.equal(own_loop(family, pipe, PATTERNS[pattern], (0,)), plain_loop(family.name, pattern, 1.0))
    assert not served(handle.report)


def cut(pipe: Any, tensors: dict[str, Any]) -> None:
    """As diffusers' documentation has it."""
    pipe._guidance_scale = 0.0
    for name in set(tensors) & {"prompt_embeds", "pooled_prompt_embeds"}:
        if "negative_prompt_embeds" not in tensors:
            tensors[name] = tensors[name].chunk(2)[-1]


@pytest.mark.parametrize("setting", BY_CALLBACK, ids=str)
def test_guidance_cut_off_by_a_callback(setting: Setting) -> None:
    family, found = setting.family, []
    pipe = family.make()
    calls = len(forward_arguments(family.name))
    with accelerate(pipe, **setting.options) as handle:
        for negative in (1.0, NEGATIVE):
            with after(pipe, 4 * calls, cut) as callback:
                found.append(_call(pipe, family, callback, words(family, negative, guidance_scale=WEIGHTLESS)))
            check_accelerated(setting, handle.report)
            assert len(found[-1]) == 1
            samples = [step.samples for step in handle.report.steps]
            assert samples[:4] == [2] * 4 and samples[6:] == [1] * 3
    torch.testing.assert_close(*found, atol=SLIGHT, rtol=SLIGHT)


def _call(pipe: Any, family: Family, callback: Any, arguments: dict[str, Any]) -> Tensor:
    """With a callback that has all tensors which callbacks may have."""
    names = TENSORS.get(family.name, ["latents", "prompt_embeds"])
    return pipe(**arguments, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)[0]


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_guidance_cut_off_where_nothing_is_reused(name: str) -> None:
    family = FAMILIES[name]
    pipe = family.make()
    plain = _call(pipe, family, at(3, cut), words(family))
    assert not torch.equal(plain, family.run(pipe, guided=True))
    with accelerate(pipe, temporal=NEVER):
        assert torch.equal(_call(pipe, family, at(3, cut), words(family)), plain)


@pytest.mark.parametrize("setting", STACKED, ids=str)
def test_guidance_started_by_a_callback(setting: Setting) -> None:
    """SD3's batch doubles: the negative prompt comes first."""
    family, found = setting.family, []
    pipe = family.make()

    def start(negative: float, pipe: Any, tensors: dict[str, Any]) -> None:
        pipe._guidance_scale = WEIGHTLESS
        for name in ("prompt_embeds", "pooled_prompt_embeds"):
            tensors[name] = torch.cat([negative * tensors[name].flip(1), tensors[name]])

    with accelerate(pipe, **setting.options) as handle:
        for negative in (1.0, NEGATIVE):
            with after(pipe, 4, partial(start, negative)) as callback:
                found.append(_call(pipe, family, callback, family.arguments()))
            check_accelerated(setting, handle.report)
            samples = [step.samples for step in handle.report.steps]
            assert samples[:4] == [1] * 4 and samples[6:] == [2] * 3
    torch.testing.assert_close(*found, atol=SLIGHT, rtol=SLIGHT)


@pytest.mark.parametrize("setting", STACKED, ids=str)
def test_the_official_cutoff_callback(setting: Setting) -> None:
    family, found = setting.family, []
    pipe = family.make()
    callback = SD3CFGCutoffCallback(cutoff_step_ratio=0.4)  # the step of index 3 of nine
    with accelerate(pipe, **setting.options) as handle:
        for negative in (1.0, NEGATIVE):
            given = words(family, negative, guidance_scale=WEIGHTLESS, callback_on_step_end=callback)
            found.append(pipe(**given)[0])
            check_accelerated(setting, handle.report)
            samples = [step.samples for step in handle.report.steps]
            assert samples == sorted(samples, reverse=True) and set(samples) == {1, 2}
            if not setting.stages:
                assert samples == [2] * 4 + [1] * 5
    torch.testing.assert_close(*found, atol=SLIGHT, rtol=SLIGHT)


@pytest.mark.parametrize("setting", STACKED, ids=str)
def test_skip_layer_guidance_in_some_steps_leaves_the_others_alone(setting: Setting) -> None:
    family = setting.family
    pipe = family.make()
    skipping = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.7}
    with accelerate(pipe, **setting.options) as handle:
        plain = family.run(pipe, guided=True)
        found = family.run(pipe, guided=True, skip_layer_guidance_scale=1e-6, **skipping)
        assert {step.samples for step in handle.report.steps} == {2, 3}
    torch.testing.assert_close(found, plain, atol=SLIGHT, rtol=SLIGHT)


def test_what_leaves_layers_out_is_never_taken_for_what_does_not() -> None:
    """Not even where samples and prompt are the same."""
    prompt = {"encoder_hidden_states": torch.ones(2, 3, 4)}
    plain, skipping = (Identity.of((0, 1), prompt, settings, False) for settings in ((), ((1,),)))
    for one, other in ((plain, skipping), (skipping, plain)):
        assert one.rows_in(other) is None and not one.is_still(other.samples, prompt, other.settings)
        assert one.rows_in(one) == [0, 1] and one.is_still((0, 1), prompt, one.settings)


# ---- a batch that shrinks

KEPT = [(0,), (2,), (0, 2)]


@pytest.mark.parametrize(
    ("setting", "keep"),
    [
        (setting, KEPT[number % 3])
        for number, setting in enumerate(IN_LOOPS + STAGED)
    ],
    ids=str,
)
def test_a_batch_that_shrinks_in_a_loop_of_ones_own(setting: Setting, keep: tuple[int, ...]) -> None:
    """What remains is drawn as it would have been alone, whenever the others went. On stages it is unguided."""
    family, branches = setting.family, ALONE if setting.stages else BOTH
    pipe = family.make()
    with accelerate(pipe, **setting.options) as handle:
        with handle.call():
            alone = own_loop(family, pipe, lambda step: branches, keep)
        check_accelerated(setting, handle.report)
        when = 1 + sum(keep) + len(keep) + setting.stages  # steps 2 to 6, in every stage
        with handle.call():
            found = own_loop(
                family, pipe, lambda step: branches, (0, 1, 2),
                lambda step, batch: keep if step == when else range(batch),
            )  # fmt: skip
        check_accelerated(setting, handle.report)
    torch.testing.assert_close(found, alone, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("setting", BY_CALLBACK, ids=str)
def test_a_batch_that_a_callback_shrinks(setting: Setting) -> None:
    family, guided = setting.family, setting.odd != setting.stages
    pipe = family.make()

    def shrink(pipe: Any, tensors: dict[str, Any]) -> None:
        for name, value in tensors.items():
            if value is not None:
                stacked = guided and family.name == "sd3" and name != "latents"
                tensors[name] = value[[1, 3]] if stacked else value[1:]

    calls = len(forward_arguments(family.name)) if guided else 1
    with accelerate(pipe, **setting.options) as handle:
        alone = family.run(pipe, (1,), guided)
        for step in (2, 7) if setting.odd else (4,):  # of each stage one
            with after(pipe, calls * step, shrink) as callback:
                found = _call(pipe, family, callback, family.arguments((0, 1), guided))
            check_accelerated(setting, handle.report)
            torch.testing.assert_close(found, alone, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("policy", ["taylorseer", "toca"])
@pytest.mark.parametrize("name", TENSORS)
def test_of_two_pictures_of_one_prompt_the_second_remains(name: str, policy: str) -> None:
    """Nothing but their numbers tells them apart."""
    setting = Setting(FAMILIES[name], policy, False)
    family, pipe = setting.family, setting.family.make()

    def arguments(samples: tuple[int, ...]) -> dict[str, Any]:
        given = family.arguments(samples)
        same = {key: value[:1].expand_as(value).clone() for key, value in given.items() if "prompt" in key}
        first = family.arguments((0,))
        return given | {key: first[key].expand_as(value).clone() for key, value in same.items()}

    def last(pipe: Any, tensors: dict[str, Any]) -> None:
        tensors.update({key: value[1:] for key, value in tensors.items() if value is not None})

    with accelerate(pipe, **setting.options) as handle:
        alone = _call(pipe, family, at(STEPS, last), arguments((1,)))
        for step in (3, 4, 5):
            found = _call(pipe, family, at(step, last), arguments((0, 1)))
            check_accelerated(setting, handle.report)
            torch.testing.assert_close(found, alone, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("policy", ["taylorseer", "adaptive"])
def test_two_calls_of_one_prompt_in_a_step_are_two_branches(policy: str) -> None:
    """The second decides as the first, and its picture is that of one call a step."""
    setting = Setting(FAMILIES["flux"], policy, False)
    pipe = setting.family.make()
    with accelerate(pipe, **setting.options) as handle:
        with handle.call():
            once = own_loop(setting.family, pipe, lambda step: ALONE)
        with handle.call():
            twice = own_loop(setting.family, pipe, lambda step: ("cond", "cond"))
        check_accelerated(setting, handle.report)
        for step in handle.report.steps:
            first, second = step.branches
            assert (first.reused, first.fresh, first.found) == (second.reused, second.fresh, second.found)
    assert torch.equal(twice, once)


# ---- another prompt


def exchanged(kind: str, prompt: Tensor) -> Tensor:
    if kind == "in place":
        return prompt.mul_(-1)
    longer = torch.cat([prompt, prompt.flip(1)[:, :3]], 1)
    return {"shorter": -prompt[:, :4], "longer": -longer, "as long": -prompt, "one word": prompt[:, :1]}[kind]


KINDS = ("shorter", "longer", "as long", "in place", "one word")
EXCHANGES = [
    (setting, KINDS[(number + number // 5) % 5] if setting.family.name != "flux" else KINDS[2 + number % 2])
    for number, setting in enumerate(INSIDE)  # five a family; flux' stock call keeps to a prompt's length
]


@pytest.mark.parametrize(("setting", "kind"), EXCHANGES, ids=str)
def test_a_prompt_that_a_callback_exchanges(setting: Setting, kind: str) -> None:
    """With latents exchanged as well, the rest of the run depends on nothing that was before."""
    family, found = setting.family, []
    pipe = family.make()
    fresh = torch.randn(stock(family.name).shape, generator=torch.Generator().manual_seed(7))
    second = family.arguments((1,))["prompt_embeds"]

    def exchange(pipe: Any, tensors: dict[str, Any]) -> None:
        tensors["latents"] = fresh.clone()
        if kind != "in place":
            tensors["prompt_embeds"] = tensors["prompt_embeds"].clone()
        tensors["prompt_embeds"].copy_(second)
        tensors["prompt_embeds"] = exchanged(kind, tensors["prompt_embeds"])

    call = 7 if setting.stages else 5 + len(setting.policy) % 2  # on stages, in the first step of the last one
    with accelerate(pipe, **setting.options) as handle:
        for scale in (1.0, NEGATIVE):
            arguments = family.arguments()
            arguments["prompt_embeds"] = scale * arguments["prompt_embeds"]
            with after(pipe, call, exchange) as callback:
                found.append(_call(pipe, family, callback, arguments))
            check_accelerated(setting, handle.report)
    torch.testing.assert_close(*found, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("kind", ["shorter", "longer", "as long", "in place"])
@pytest.mark.parametrize("name", ["sd3", "qwen", "wan"])
def test_a_prompt_exchanged_where_nothing_is_reused(name: str, kind: str) -> None:
    family = FAMILIES[name]
    pipe = family.make()

    def exchange(pipe: Any, tensors: dict[str, Any]) -> None:
        tensors["prompt_embeds"] = exchanged(kind, tensors["prompt_embeds"])

    more = {"callback_on_step_end": at(4, exchange), "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    guided = kind in ("longer", "in place")
    plain = family.run(pipe, guided=guided, **more)
    with accelerate(pipe, temporal=NEVER):
        assert torch.equal(family.run(pipe, guided=guided, **more), plain)
    with accelerate(pipe, spatial=PLAN, temporal=TaylorSeer(3)) as handle:
        assert family.run(pipe, guided=guided, **more).isfinite().all()
        assert served(handle.report)


# ---- a model whose output names its inputs

PROMPTS, SAMPLES = 3, 3
EAGER = [TeaCache(99.0, coefficients="identity"), SeaCache(99.0, order=1), TaylorSeer(3, first=1), Adaptive(3)]
Plan = list[tuple[tuple[int, ...], int]]


def naming_pipeline() -> Any:
    """What its blocks add to every token is the mean of the words: a constant of the prompt, which reuse gets right."""
    pipe = FAMILIES["flux"].make()
    model = pipe.transformer

    def name(hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return encoder_hidden_states, hidden_states + 5 * encoder_hidden_states.mean(1, keepdim=True)

    def pass_on(hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return encoder_hidden_states, hidden_states

    model.transformer_blocks[0].forward = name
    model.single_transformer_blocks[0].forward = pass_on
    return pipe


def named(pipe: Any, plan: Plan) -> Tensor:
    """A loop in which each step calls the model for some prompts in some order, on a batch that may lose samples."""
    family = FAMILIES["flux"]
    call = branch_arguments(family, range(SAMPLES))["cond"]
    latents, rows = call["hidden_states"], list(range(SAMPLES))
    prompts = [
        torch.randn(call["encoder_hidden_states"].shape, generator=torch.Generator().manual_seed(number))
        for number in range(PROMPTS)
    ]
    pipe.scheduler.set_timesteps(len(plan), mu=family.mu)
    with torch.no_grad():
        for (order, lost), time in zip(plan, pipe.scheduler.timesteps, strict=True):
            if lost in rows and len(rows) > 1:
                latents = latents[[place for place, row in enumerate(rows) if row != lost]]
                rows.remove(lost)
            total = torch.zeros_like(latents)
            for number in order:
                arguments = surroundings.rows_of(call, SAMPLES, rows) | {
                    "hidden_states": latents, "timestep": time.expand(len(rows)) / 1000,
                    "encoder_hidden_states": prompts[number][rows],
                }  # fmt: skip
                total = total + (1 + number) * pipe.transformer(**arguments)[0]
            latents = pipe.scheduler.step(total / PROMPTS, time, latents, return_dict=False)[0]
    return latents


def plans() -> st.SearchStrategy[Plan]:
    orders = st.permutations(range(PROMPTS)).flatmap(
        lambda order: st.integers(1, PROMPTS).map(lambda count: tuple(order[:count]))
    )
    steps = st.tuples(orders, st.sampled_from([-1, -1, -1, *range(SAMPLES)]))
    stretches = st.lists(st.tuples(steps, st.integers(1, 4)), min_size=2, max_size=4)
    return stretches.map(lambda drawn: [step for step, count in drawn for _ in range(count)])


NAMING: list[Any] = []


@settings(max_examples=40, deadline=None)
@given(plans(), st.sampled_from(EAGER))
@example([((0, 1), -1)] * 6, EAGER[2])
@example([((0, 1), -1)] * 4 + [((1,), -1)] * 4, EAGER[0])
@example([((1,), -1)] * 4 + [((0, 1), -1)] * 4, EAGER[1])
@example([((0, 1), -1)] * 3 + [((1, 0), 0)] * 4, EAGER[3])
def test_what_is_reused_has_the_name_of_what_was_asked_for(plan: Plan, policy: Any) -> None:
    if not NAMING:
        NAMING.append(naming_pipeline())
    (pipe,) = NAMING
    expected = named(pipe, plan)
    with accelerate(pipe, temporal=policy) as handle, handle.call():
        found = named(pipe, plan)
    if len(plan) > 5 and len(set(plan)) == 1:
        assert served(handle.report)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def check_begins_anew(family: Family, pipe: Any, change: Callable[[Any, dict[str, Any]], None]) -> None:
    """That what a callback does after a step makes the next one compute, which reuses where nothing is done."""
    reused = []
    with accelerate(pipe, temporal=TaylorSeer(3)) as handle:
        for do in (lambda pipe, tensors: None, change):
            family.run(pipe, callback_on_step_end=at(3, do))
            reused.append([step.reused for step in handle.report.steps][3:6])
    assert reused == [[0, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen"])
def test_another_scale_of_a_lora_begins_anew(name: str) -> None:
    """As callbacks set it, between two steps of the same tensors."""
    family = FAMILIES[name]
    pipe = family.make()

    def weaken(pipe: Any, tensors: dict[str, Any]) -> None:
        stored = "_joint_attention_kwargs" if name != "qwen" else "_attention_kwargs"
        setattr(pipe, stored, {"scale": 0.5})

    check_begins_anew(family, pipe, weaken)


@pytest.mark.parametrize("change", ["weights", "off"])
def test_loras_set_by_a_callback_begin_anew(change: str) -> None:
    """What the same calls gave with others, or none, is on no line with what they will give."""
    family = FAMILIES["flux"]
    pipe = family.make()
    add_lora(pipe)

    def weaken(pipe: Any, tensors: dict[str, Any]) -> None:
        pipe.transformer.set_adapters(["a"], [0.5]) if change == "weights" else pipe.transformer.disable_adapters()

    check_begins_anew(family, pipe, weaken)


def test_the_names_differ() -> None:
    """Or the test above could not fail."""
    pipe = naming_pipeline()
    first, second = (named(pipe, [((number,), -1)] * 3) for number in (0, 1))
    assert not torch.allclose(first[0], second[0], atol=0.1)
    assert not torch.allclose(first[0], first[1], atol=0.1)


