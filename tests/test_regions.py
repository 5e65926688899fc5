"""Scorers on images whose answer is known, and the laws of the selection."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache.plane import regions
from ralu_cache.plane.regions import Evidence, Scorer, get_scorer, register_scorer, scorer_names, select_top

NAMES = (
    "canny", "sobel", "latent-gradient", "step-variance", "step-variance-moving", "velocity-variance",
    "text-attention", "even",
)  # fmt: skip
SIZE, PATCH = 64, 2  # latent pixels per side, per token side: 16 x 16 coarse tokens
CELLS = SIZE // (2 * PATCH)


def decode(latents: Tensor) -> Tensor:
    """A decoder that paints each latent pixel as 8 x 8 image pixels, grey = first channel."""
    return latents[:, :1].repeat(1, 3, 1, 1).repeat_interleave(8, -1).repeat_interleave(8, -2)


def square(low: float = -1.0, high: float = 1.0) -> Tensor:
    """A bright square of 6 x 6 coarse tokens, from token (5, 5), on a dark ground: (1, 1, SIZE, SIZE)."""
    image = torch.full((1, 1, SIZE, SIZE), low)
    image[..., 20:44, 20:44] = high
    return image


def rim() -> Tensor:
    """(CELLS, CELLS): the tokens on both sides of the square's outline."""
    touched = torch.zeros(CELLS, CELLS, dtype=torch.bool)
    touched[4:12, 4:12] = True
    touched[6:10, 6:10] = False
    return touched


def evidence(x0: Tensor, *, velocity: Tensor | None = None, history: tuple[Tensor, ...] | None = None) -> Evidence:
    b, _, h, w = x0.shape
    attention = F.avg_pool2d(x0[:, 0], 2 * PATCH).view(b, h // 4, w // 4)
    return Evidence(
        x0=x0, velocity=x0 if velocity is None else velocity, history=(x0, x0) if history is None else history,
        patch=PATCH, decode=decode, text_attention=attention,
    )  # fmt: skip


def random_evidence(batch: int) -> Evidence:
    noise = torch.Generator().manual_seed(1)
    x0, velocity, earlier = torch.randn(3, batch, 4, SIZE, SIZE, generator=noise).unbind()
    return evidence(x0, velocity=velocity, history=(earlier, 0.5 * (earlier + x0), x0))


def one(whole: Evidence, k: int) -> Evidence:
    """Sample k of `whole`, alone."""
    assert whole.text_attention is not None
    pick = slice(k, k + 1)
    return Evidence(
        x0=whole.x0[pick], velocity=whole.velocity[pick], history=tuple(x[pick] for x in whole.history),
        patch=whole.patch, decode=whole.decode, text_attention=whole.text_attention[pick],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _opencv(request):
    if "canny" in request.node.name:
        pytest.importorskip("cv2")


# ---- scorers


@pytest.mark.parametrize("name", ["canny", "sobel", "latent-gradient", "velocity-variance"])
def test_edges_of_a_square_score_highest(name):
    scores = get_scorer(name).score(evidence(square()))
    assert scores.shape == (1, CELLS, CELLS) and scores.dtype == torch.float32
    assert (scores[0][~rim()] == 0).all()
    assert scores[0][rim()].sum() > 0
    chosen = select_top(scores, 0.05)[0]
    assert not (chosen & ~rim()).any()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("even", "text-attention")])
@pytest.mark.parametrize("level", [-1.0, 0.1, 0.7])
def test_a_flat_image_scores_zero_and_ties_go_by_raster(name, level):
    scores = get_scorer(name).score(evidence(torch.full((2, 4, SIZE, SIZE), level)))
    assert (scores == 0).all()
    assert select_top(scores, 0.1).flatten(1).int().argmin(1).tolist() == [26, 26]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_alone_scores_as_in_the_batch(name):
    whole, scorer = random_evidence(3), get_scorer(name)
    scores = scorer.score(whole)
    assert scores.shape == (3, CELLS, CELLS) and scores.dtype == torch.float32
    for k in range(3):
        assert torch.equal(scorer.score(one(whole, k)), scores[k : k + 1])


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_oblong_grids(name):
    x0 = torch.randn(2, 4, 24, 40, generator=torch.Generator().manual_seed(2)).bfloat16()
    scores = get_scorer(name).score(evidence(x0, history=(x0, 2 * x0)))
    assert scores.shape == (2, 6, 10) and scores.dtype == torch.float32 and scores.isfinite().all()


def test_canny_sees_edges_between_dark_levels():
    scores = get_scorer("canny").score(evidence(square(-1.0, -0.1)))
    assert scores[0][rim()].sum() > 0
    clipped = square(-1.0, -0.1).clamp(0, 1)
    assert clipped.max() == 0  # what the published clipping leaves of it


def test_canny_counts_edge_pixels():
    scores = get_scorer("canny").score(evidence(square()))
    side = 8 * PATCH  # image pixels per coarse token in the decoded pooled latent
    assert torch.equal(scores, scores.round())
    middle = scores[0, 7, 4:6]  # the outline crosses these two tokens vertically, one pixel wide
    assert middle.sum() == side


def test_canny_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"ralu_cache\[canny\]"):
        get_scorer("canny").score(evidence(square()))


def test_sobel_does_not_need_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert get_scorer("sobel").score(evidence(square())).max() > 0


def test_the_pooled_latent_is_decoded_one_sample_at_a_time():
    shapes = []

    def spy(latents: Tensor) -> Tensor:
        shapes.append(tuple(latents.shape))
        return decode(latents)

    for size in (SIZE, 60):
        x0 = torch.zeros(2, 4, size, size)
        get_scorer("sobel").score(Evidence(x0=x0, velocity=x0, history=(), patch=PATCH, decode=spy))
    assert shapes == [(1, 4, 32, 32)] * 2 + [(1, 4, 30, 30)] * 2
    shapes.clear()
    x0 = torch.zeros(1, 4, 6, 6)
    get_scorer("sobel").score(Evidence(x0=x0, velocity=x0, history=(), patch=1, decode=spy))
    assert shapes == [(1, 4, 6, 6)]  # half of it would be odd


def test_variance_over_steps_in_both_signs():
    still, moving = torch.zeros(1, 4, SIZE, SIZE), torch.zeros(1, 4, SIZE, SIZE)
    moving[..., :4, :4] = 2.0  # token (0, 0) moved by 2 in one of two steps: variance 1
    known = evidence(still, history=(moving, still))
    converged, moved = (get_scorer(n).score(known) for n in ("step-variance", "step-variance-moving"))
    assert moved[0, 0, 0] == 1 and moved.sum() == 1
    assert torch.equal(converged, -moved)
    assert select_top(moved, 1 / CELLS**2)[0, 0, 0]
    assert not select_top(converged, 1 - 1 / CELLS**2)[0, 0, 0]


def test_text_attention_is_passed_through():
    known = random_evidence(2)
    assert torch.equal(get_scorer("text-attention").score(known), known.text_attention)


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_even_gives_every_window_its_share(size, ratio):
    x0 = torch.zeros(2, 1, size, size)
    chosen = select_top(get_scorer("even").score(evidence(x0)), ratio).float()
    assert torch.equal(chosen[0], chosen[1])
    shares = F.avg_pool2d(chosen, 8, 1)
    assert (shares - ratio).abs().max() < 0.08
    side = math.ceil(1.6 / math.sqrt(ratio)) + 1  # no empty square much wider than the mean distance
    assert F.max_pool2d(chosen, side, 1).min() == 1


def test_even_is_nested():
    scores = get_scorer("even").score(evidence(torch.zeros(1, 1, SIZE, SIZE)))
    few, many = select_top(scores, 0.2), select_top(scores, 0.5)
    assert (many | ~few).all()
    assert len(scores.unique()) == CELLS**2


# ---- missing or ill-matched evidence


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("canny", "decode=None"), ("sobel", "decode=None"), ("text-attention", "got None"),
        ("step-variance", "at least 2 steps, got 1"), ("step-variance-moving", "at least 2 steps, got 1"),
    ],
)  # fmt: skip
def test_missing_evidence_is_named(name, message):
    x0 = torch.zeros(1, 4, SIZE, SIZE)
    with pytest.raises(ValueError, match=message) as error:
        get_scorer(name).score(Evidence(x0=x0, velocity=x0, history=(x0,), patch=PATCH))
    assert repr(name) in str(error.value)


def test_needs_are_exactly_what_a_scorer_reads():
    x0 = torch.zeros(1, 4, SIZE, SIZE)
    for name in NAMES:
        needs = get_scorer(name).needs
        supplied = Evidence(
            x0=x0, velocity=x0, history=(x0, x0) if "history" in needs else (), patch=PATCH,
            decode=decode if "decode" in needs else None,
            text_attention=torch.zeros(1, CELLS, CELLS) if "text_attention" in needs else None,
        )  # fmt: skip
        assert get_scorer(name).score(supplied).shape == (1, CELLS, CELLS)


def test_ill_matched_evidence_is_refused():
    x0 = torch.zeros(1, 4, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"divisible by 2 \* patch = 4.*62"):
        Evidence(x0=torch.zeros(1, 4, 64, 62), velocity=x0, history=(), patch=PATCH)
    with pytest.raises(ValueError, match="velocity"):
        Evidence(x0=x0, velocity=x0[:, :2], history=(), patch=PATCH)
    with pytest.raises(ValueError, match=r"history\[1\]"):
        Evidence(x0=x0, velocity=x0, history=(x0, x0[..., :32]), patch=PATCH)
    with pytest.raises(ValueError, match="text_attention"):
        Evidence(x0=x0, velocity=x0, history=(), patch=PATCH, text_attention=torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match="1 entries of a batch are not whole videos of 2 frames"):
        Evidence(x0=x0[:1], velocity=x0[:1], history=(), patch=PATCH, frames=2)
    odd = Evidence(x0=x0, velocity=x0, history=(), patch=PATCH, decode=lambda x: torch.zeros(1, 3, 100, 100))
    with pytest.raises(ValueError, match="100 x 100"):
        get_scorer("sobel").score(odd)


# ---- registry


def test_registry(monkeypatch):
    monkeypatch.setattr(regions, "_SCORERS", dict(regions._SCORERS))
    assert scorer_names() == NAMES
    constant = Scorer("constant", lambda e: torch.ones(len(e.x0), *e.cells))
    register_scorer(constant)
    assert get_scorer("constant") is constant and scorer_names()[-1] == "constant"
    with pytest.raises(ValueError, match="'constant' is registered already"):
        register_scorer(constant)
    with pytest.raises(ValueError, match=r"'edges'.*canny.*even"):
        get_scorer("edges")
    with pytest.raises(ValueError, match="vae"):
        Scorer("other", constant.score, frozenset({"vae"}))
    with pytest.raises(ValueError, match="name"):
        Scorer("", constant.score)


# ---- select_top


@st.composite
def selections(draw):
    b, y, x = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    values = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf, -math.inf, -0.0]))
    scores = torch.tensor(draw(st.lists(values, min_size=b * y * x, max_size=b * y * x))).view(b, y, x)
    ratio = draw(st.floats(1e-3, 1))
    count = max(1, round(ratio * y * x))
    orders = [draw(st.permutations(range(y * x))) for _ in range(b)]
    taken = [draw(st.integers(0, count)) for _ in range(b)]
    already = torch.zeros(b, y * x, dtype=torch.bool)
    for k in range(b):
        already[k, list(orders[k][: taken[k]])] = True
    return scores, ratio, count, already.view(b, y, x)


@given(selections())
def test_selection_counts_includes_and_ranks(selection):
    scores, ratio, count, already = selection
    chosen = select_top(scores, ratio, already)
    assert chosen.dtype == torch.bool and chosen.shape == scores.shape
    assert (chosen.flatten(1).sum(1) == count).all()
    assert (chosen | ~already).all()
    for values, picked, kept in zip(scores.flatten(1).tolist(), chosen.flatten(1), already.flatten(1), strict=True):
        rank = [(-v if math.isfinite(v) else math.inf, k) for k, v in enumerate(values)]
        free = [k for k in range(len(values)) if not kept[k]]
        best = sorted(free, key=lambda k, rank=rank: rank[k])[: count - int(kept.sum())]
        assert sorted(best) == [k for k in free if picked[k]]


@given(selections())
def test_selection_of_a_sample_ignores_the_batch(selection):
    scores, ratio, _, already = selection
    chosen = select_top(scores, ratio, already)
    for k in range(len(scores)):
        assert torch.equal(select_top(scores[k : k + 1], ratio, already[k : k + 1])[0], chosen[k])


@given(st.permutations(range(12)), st.floats(0.01, 1))
def test_selection_follows_a_permutation_of_distinct_scores(order, ratio):
    scores = torch.arange(12.0).view(1, 3, 4)
    shuffled = scores.flatten()[list(order)].view(1, 3, 4)
    chosen = select_top(scores, ratio).flatten()
    assert torch.equal(select_top(shuffled, ratio).flatten(), chosen[list(order)])


def test_selection_edge_cases():
    assert select_top(torch.full((1, 3, 3), math.nan), 1.0).all()
    assert select_top(torch.zeros(1, 3, 3), 1e-9).flatten().tolist() == [True] + [False] * 8
    assert select_top(torch.tensor([[[-0.0, 0.0]]]), 0.5).tolist() == [[[True, False]]]


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1, math.nan])
def test_selection_rejects_a_ratio(ratio):
    with pytest.raises(ValueError, match=str(ratio)):
        select_top(torch.zeros(1, 3, 3), ratio)


def test_selection_rejects_ill_matched_input():
    scores = torch.zeros(1, 3, 3)
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        select_top(scores[0], 0.5)
    with pytest.raises(ValueError, match="float32"):
        select_top(scores, 0.5, torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match=r"9 tokens.*4"):
        select_top(scores, 0.5, torch.ones(1, 3, 3, dtype=torch.bool))
