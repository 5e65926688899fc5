"""Blocks that a probe finds: reuse of the stack on denoisers that no adapter knows."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.coverage.build import build
from benchmarks.coverage.survey import draw as draw_tiny
from ralu_cache import SeaCache, TaylorSeer, TeaCache, accelerate
from ralu_cache.cli import main
from ralu_cache.engine.probing import NothingFound
from tests.surroundings import OFFLOADS
from tests.toy_family import CHANNELS, WIDTH, ToyBlock, ToyPipeline, ToyTransformer, make_toy_pipeline

PROMPTS = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
STEPS = 8
POLICIES = {"teacache": TeaCache(threshold=0.2), "seacache": SeaCache(threshold=0.3), "taylorseer": TaylorSeer(2)}


class Joint(ToyTransformer):
    """Words stand before the picture's tokens, and the head takes in those alone."""

    def forward(self, hidden_states: Tensor, positions: Tensor, timestep: Tensor, prompt: Tensor) -> tuple[Tensor]:
        hidden = self.start(hidden_states, positions, timestep, prompt)
        hidden = torch.cat([self.text(prompt)[:, None].repeat(1, 3, 1), hidden], 1)
        for block in self.blocks:
            hidden = block(hidden)
        return (self.head(hidden[:, 3:]),)


class Shifted(ToyTransformer):
    """What the head takes in is not what the first block was given, even without blocks."""

    def forward(self, hidden_states: Tensor, positions: Tensor, timestep: Tensor, prompt: Tensor) -> tuple[Tensor]:
        hidden = self.start(hidden_states, positions, timestep, prompt)
        for block in self.blocks:
            hidden = block(hidden)
        return (self.head(hidden + 1),)


class Refined(ToyTransformer):
    """Another stack of blocks goes before, which the head knows of only through the main one."""

    def __init__(self) -> None:
        super().__init__()
        self.refiner = nn.ModuleList([ToyBlock()])
        self.join = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, positions: Tensor, timestep: Tensor, prompt: Tensor) -> tuple[Tensor]:
        hidden = self.start(hidden_states, positions, timestep, prompt)
        for block in self.refiner:
            hidden = block(hidden)
        hidden = self.join(hidden)
        for number, block in enumerate(self.blocks):
            hidden = block(hidden) * (1 + number)
        return (self.head(hidden),)


class Aside(ToyTransformer):
    """Something of the blocks goes past the head."""

    def forward(self, hidden_states: Tensor, positions: Tensor, timestep: Tensor, prompt: Tensor) -> tuple[Tensor]:
        hidden, sums = self.start(hidden_states, positions, timestep, prompt), hidden_states.new_zeros(())
        for block in self.blocks:
            hidden = block(hidden)
            sums = sums + hidden.mean()
        return (self.head(hidden) * sums,)


class Counted(ToyTransformer):
    """Comes to its blocks by number."""

    def forward(self, hidden_states: Tensor, positions: Tensor, timestep: Tensor, prompt: Tensor) -> tuple[Tensor]:
        hidden = self.start(hidden_states, positions, timestep, prompt)
        for number in range(len(self.blocks)):
            hidden = self.blocks[number](hidden)
        return (self.head(hidden),)


class Needed(ToyTransformer):
    """Its code does not run without blocks."""

    def forward(self, hidden_states: Tensor, positions: Tensor, timestep: Tensor, prompt: Tensor) -> tuple[Tensor]:
        hidden = self.start(hidden_states, positions, timestep, prompt)
        for block in self.blocks:
            out = block(hidden)
        return (self.head(out),)


class Told(ToyTransformer):
    """Is told by plain words which blocks to leave out, and how much they weigh."""

    def forward(
        self, hidden_states: Tensor, positions: Tensor, timestep: Tensor, prompt: Tensor,
        leave_out: tuple[int, ...] = (), options: dict[str, float] | None = None,
    ) -> tuple[Tensor]:  # fmt: skip
        hidden = self.start(hidden_states, positions, timestep, prompt)
        for number, block in enumerate(self.blocks):
            if number not in leave_out:
                hidden = block(hidden) * (options or {}).get("scale", 1.0)
        return (self.head(hidden),)


def make(transformer: type[ToyTransformer] = ToyTransformer) -> Any:
    pipe = make_toy_pipeline()
    torch.manual_seed(0)
    pipe.transformer = transformer().eval()
    return pipe


def draw(pipe: Any, prompt: Tensor = PROMPTS, **given: Any) -> Tensor:
    given = {"height": 64, "width": 64, "num_inference_steps": STEPS, **given}
    return pipe(prompt, generator=torch.Generator().manual_seed(0), **given)


def counting(module: nn.Module) -> list[int]:
    """Grows with every call, by the number of samples."""
    seen: list[int] = []
    module.register_forward_hook(lambda part, args, output: seen.append(len(output)))
    return seen


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_that_reuses_the_stack_is_served(name: str) -> None:
    check_served(ToyTransformer, "3 blocks in blocks, then head; kept is its residual; signal at qkv", name)


@pytest.mark.parametrize(
    ("transformer", "told"),
    [
        (Joint, "3 blocks in blocks, then head; kept is its residual; signal at qkv"),
        (Shifted, "3 blocks in blocks, then head; kept is what the head takes in; signal at qkv"),
        (Refined, "3 blocks in blocks, then head; kept is its residual; signal at qkv"),
    ],
)
def test_blocks_are_found_left_out_and_given_back(transformer: type[ToyTransformer], told: str) -> None:
    check_served(transformer, told, "taylorseer")


def check_served(transformer: type[ToyTransformer], told: str, name: str) -> None:
    pipe = make(transformer)
    stock, blocks = draw(pipe), counting(pipe.transformer.blocks[1])
    with accelerate(pipe, temporal=POLICIES[name]) as handle:
        fast = draw(pipe)
        assert [str(finding) for finding in handle.findings] == [told]
        blocks.clear()
        assert torch.equal(draw(pipe), fast), "the probe of the first call leaves nothing behind"
        report = handle.report
        assert report.size == (0, 0) and {step.tokens for step in report.steps} == {0}, "nobody knows them"
        computed = sum(len(PROMPTS) * 2 - step.reused for step in report.steps)
        assert report.completed and len(report.steps) == STEPS and sum(blocks) == computed < 2 * 2 * STEPS
    assert torch.equal(draw(pipe), stock)
    assert not any(part._forward_pre_hooks for part in pipe.transformer.modules())
    assert type(pipe.transformer.blocks) is nn.ModuleList


class Frames(ToyPipeline):
    """Steps each frame by a copy of the scheduler, as SkyReels does where frames have levels of their own."""

    @torch.no_grad()
    def __call__(self, prompt: Tensor, num_inference_steps: int = STEPS) -> Tensor:
        self.scheduler.set_timesteps(num_inference_steps)
        each = [copy.deepcopy(self.scheduler) for _ in range(2)]
        frames = torch.randn(2, 16, 4 * CHANNELS, generator=torch.Generator().manual_seed(0))
        for t in self.scheduler.timesteps:
            velocity = self.transformer(frames, torch.zeros(2, 16, 2), (t / 1000).expand(2), prompt)[0]
            frames = torch.cat([
                own.step(velocity[i : i + 1], t, frames[i : i + 1], return_dict=False)[0] for i, own in enumerate(each)
            ])  # fmt: skip
        return frames


def test_copies_of_a_scheduler_that_step_a_frame_each_are_told_by_name() -> None:
    pipe = Frames(make().transformer, make().scheduler)
    stock = pipe(PROMPTS)
    with accelerate(pipe, temporal=TaylorSeer(2)), pytest.raises(RuntimeError, match="steps copies of its scheduler"):
        pipe(PROMPTS)
    with accelerate(pipe, temporal="forecast:3"):
        assert pipe(PROMPTS).isfinite().all()
    assert torch.equal(pipe(PROMPTS), stock)


def test_others_may_run_the_model_during_the_probe() -> None:
    pipe = make()
    other = ToyPipeline(pipe.transformer, copy.deepcopy(pipe.scheduler))
    expected, here = draw(other, num_inference_steps=2), threading.get_ident()
    elsewhere: list[Tensor] = []

    def meanwhile(*_: Any) -> None:
        if threading.get_ident() == here and len(elsewhere) < 4:  # the first calls, of which two are the probe's
            with ThreadPoolExecutor(1) as pool:
                elsewhere.append(pool.submit(draw, other, num_inference_steps=2).result())

    with accelerate(pipe, temporal=POLICIES["taylorseer"]) as handle:
        hook = pipe.transformer.embed.register_forward_pre_hook(meanwhile)
        fast = draw(pipe)
        hook.remove()
        assert [finding.head for finding in handle.findings] == ["head"] and torch.equal(draw(pipe), fast)
    assert len(elsewhere) == 4 and all(torch.equal(drawn, expected) for drawn in elsewhere)


@pytest.mark.parametrize(
    ("transformer", "policy"),
    [
        (ToyTransformer, SeaCache(threshold=0)), (Joint, TeaCache(threshold=0)), (Shifted, TeaCache(threshold=0)),
        (Refined, TaylorSeer(1)),
    ],
)  # fmt: skip
def test_with_nothing_reused_it_is_stock(transformer: type[ToyTransformer], policy: Any) -> None:
    pipe = make(transformer)
    stock = draw(pipe)
    with accelerate(pipe, temporal=policy) as handle:
        assert torch.equal(draw(pipe), stock) and torch.equal(draw(pipe), stock)
        assert not sum(step.reused for step in handle.report.steps)


@pytest.mark.parametrize(("transformer", "why"), [
    (Aside, "the output is another"), (Counted, "in another way than by a loop"), (Needed, "UnboundLocalError"),
])  # fmt: skip
def test_what_is_not_found_is_said(transformer: type[ToyTransformer], why: str) -> None:
    pipe = make(transformer)
    stock = draw(pipe)
    handle = accelerate(pipe, temporal="taylorseer:2")
    with pytest.raises(NothingFound, match=f"{transformer.__name__} has no stack of blocks.*{why}.*forecast:3"):
        draw(pipe)
    handle.disable()
    assert torch.equal(draw(pipe), stock)
    with accelerate(pipe, temporal="forecast:3"):
        assert draw(pipe).isfinite().all()


@pytest.mark.parametrize("name", POLICIES)
def test_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    """Each sample decides for itself, and branches of guidance are never mixed."""
    pipe = make()
    noise = torch.randn(2, 16, 4 * CHANNELS, generator=torch.Generator().manual_seed(0))

    def of(rows: list[int]) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", lambda *_, **__: noise[rows])
            return pipe(PROMPTS[rows] * torch.tensor([[1.0], [8.0]])[rows], height=64, width=64)

    with accelerate(pipe, temporal=POLICIES[name]) as handle:
        both = of([0, 1])
        shares = [step.reused for step in handle.report.steps]
        apart = torch.cat([of([0]), of([1])])
    assert any(shares)
    torch.testing.assert_close(both, apart, atol=1e-5, rtol=1e-5)


def looped(pipe: Any, turns: bool, weaker: dict[str, Any] | None = None) -> Tensor:
    """A loop of one's own, guided; turns: the call without the prompt goes first at every other step.

    weaker: what that call is told instead, with the prompt.
    """
    latents = torch.randn(2, 16, 4 * CHANNELS, generator=torch.Generator().manual_seed(0))
    positions = torch.cartesian_prod(torch.arange(4), torch.arange(4)).float().expand(2, -1, -1)
    pipe.scheduler.set_timesteps(STEPS)
    for number, t in enumerate(pipe.scheduler.timesteps):
        prompts = {"with": PROMPTS, "without": torch.zeros(2, 8)}
        order = [*prompts][:: -1 if turns and number % 2 else 1]
        call = {"hidden_states": latents, "positions": positions, "timestep": (t / 1000).expand(2)}
        told = {"with": {}, "without": weaker or {}}
        if weaker is not None:
            prompts["without"] = PROMPTS
        made = {name: pipe.transformer(**call, prompt=prompts[name], **told[name])[0] for name in order}
        velocity = made["without"] + 3 * (made["with"] - made["without"])
        latents = pipe.scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents


@torch.no_grad()
@pytest.mark.parametrize("weaker", [None, {"leave_out": (1,)}, {"options": {"scale": 0.5}}], ids=str)
def test_branches_are_told_by_what_they_are_given(weaker: dict[str, Any] | None) -> None:
    """Not by their order."""
    pipe = make(Told)
    with accelerate(pipe, temporal=TaylorSeer(2)) as handle:
        with handle.call():
            straight = looped(pipe, False, weaker)
        assert all(len(step.branches) == 2 for step in handle.report.steps)
        assert any(step.reused for step in handle.report.steps)
        with handle.call():
            assert torch.equal(looped(pipe, True, weaker), straight)


def test_another_size_needs_no_other_probe() -> None:
    pipe = make(Joint)
    with accelerate(pipe, temporal=TaylorSeer(2)) as handle:
        draw(pipe)
        found = handle.findings[0]
        assert draw(pipe, height=128, width=64).shape == (2, 32, 16) and draw(pipe, PROMPTS[:1]).shape[0] == 1
        assert handle.findings[0] is found


def test_another_block_is_another_probe() -> None:
    pipe = make()
    with accelerate(pipe, temporal=TaylorSeer(2)) as handle:
        draw(pipe)
        pipe.transformer.blocks[0] = ToyBlock().eval()
        stock = draw(copy.deepcopy(make_with(pipe.transformer)))
        fast = draw(pipe)
        assert sum(step.reused for step in handle.report.steps)
        assert (fast - stock).norm() < 0.2 * stock.norm()


def make_with(transformer: Any) -> Any:
    pipe = make_toy_pipeline()
    pipe.transformer = copy.deepcopy(transformer)
    return pipe


def test_an_exception_in_the_probe_leaves_nothing_behind() -> None:
    pipe = make()
    stock = draw(pipe)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with accelerate(pipe, temporal=TeaCache(threshold=0.2)) as handle:
        bad = pipe.transformer.blocks[2].register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            draw(pipe)
        bad.remove()
        assert not handle.findings and type(pipe.transformer.blocks) is nn.ModuleList
        draw(pipe)
        assert handle.findings
    assert torch.equal(draw(pipe), stock)


def test_compiled_blocks_are_refused() -> None:
    pipe = make()
    pipe.transformer.blocks[0]._compiled_call_impl = pipe.transformer.blocks[0]._call_impl
    with pytest.raises(RuntimeError, match="ToyTransformer are compiled, and a probe cannot look into those"):
        accelerate(pipe, temporal="taylorseer:2")


@pytest.fixture(scope="module")
def sana() -> Iterator[Callable[[], Any]]:
    made = build("SanaPipeline")
    yield lambda: copy.deepcopy(made)


@pytest.mark.parametrize("kind", ["submodules", "model"])
def test_nothing_is_touched_before_offload_hooks_have_brought_it(sana: Callable[[], Any], kind: str) -> None:
    """What is away is on `meta`."""
    pipe = sana()
    given = {
        "prompt": "a red fox", "num_inference_steps": 6, "height": 64, "width": 64, "use_resolution_binning": False,
        "output_type": "latent", "generator": None,
    }  # fmt: skip
    with accelerate(pipe, temporal=TeaCache(threshold=1e9)):
        at_home, _ = draw_tiny(pipe, given)
    back = OFFLOADS[kind](pipe)
    with accelerate(pipe, temporal=TeaCache(threshold=1e9)) as handle:
        away, _ = draw_tiny(pipe, given)
        assert sum(step.reused for step in handle.report.steps)
    back()
    torch.testing.assert_close(away, at_home, atol=1e-5, rtol=1e-5)


class Grid(ToyTransformer):
    """Its tokens lie in rows and columns all through (B, rows, columns, d)."""

    def forward(self, hidden_states: Tensor, positions: Tensor, timestep: Tensor, prompt: Tensor) -> tuple[Tensor]:
        hidden = self.start(hidden_states, positions, timestep, prompt).unflatten(1, (-1, 4))
        for block in self.blocks:
            hidden = block(hidden)
        return (self.head(hidden).flatten(1, 2),)


def test_tokens_in_rows_and_columns() -> None:
    check_served(Grid, "3 blocks in blocks, then head; kept is its residual; signal at qkv", "taylorseer")


def test_info_shows_what_was_found(
    sana: Callable[[], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sana().save_pretrained(tmp_path / "sana")
    assert main(["info", str(tmp_path / "sana"), "--height", "64", "--width", "64"]) == 0
    text = capsys.readouterr().out
    assert "SanaPipeline with DPMSolverMultistepScheduler" in text and "temporal='forecast' works" in text
    assert "2 blocks in transformer_blocks, then norm_out; kept is its residual; signal at attn1" in text
    assert main(["info", "tiny-flux"]) == 0
    assert "family flux: tokens, text attention, blocks, layers, cost" in capsys.readouterr().out
