"""The laws of the ledger (their numbers in parentheses), and tokens maps against maps painted on the plane."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache.history.feature import NEVER, Feature, StaleFeature, Stamps
from ralu_cache.history.ledger import Ledger, Samples
from ralu_cache.history.marks import Mark
from ralu_cache.history.residuals import extrapolate
from ralu_cache.history.trends import RESIDUAL, token_changes
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import Kind, map_tokens, plane, take
from tests.strategies import chains, emptied_at, layouts, pairs

FIELDS = ("values", "step", "sigma", "mark")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def feature_on(layout: TokenLayout, seed: int = 0, extra: int = 0, dtype: torch.dtype = torch.float32) -> Feature:
    """Random values, births, levels and marks."""
    generator = torch.Generator().manual_seed(seed)
    shape = (layout.batch, layout.tokens)
    values = torch.randn(layout.batch, layout.tokens + extra, 3, generator=generator).to(dtype)
    stamps = Stamps(
        step=torch.randint(0, 9, shape, generator=generator, dtype=torch.int32),
        sigma=torch.rand(shape, generator=generator),
        mark=torch.randint(0, 3, shape, generator=generator, dtype=torch.uint8),
    )
    return Feature(values, layout, (NEVER,) * layout.batch, stamps)


def moved_to(feature: Feature, layout: TokenLayout, changed: Tensor | None = None) -> Feature:
    return feature.move(layout, map_tokens(feature.layout, layout), changed)


def some_of(feature: Feature, samples: Sequence[int]) -> Feature:
    rows = torch.tensor(samples)
    return feature.pick(samples, rows, feature.layout.pick(rows))


def same(a: Feature, b: Feature) -> bool:
    """Equal bit for bit, on layouts that cover the plane alike."""
    fields = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    return torch.equal(a.layout.refined, b.layout.refined) and all(
        x.dtype == y.dtype and torch.equal(x.nan_to_num(-1.0), y.nan_to_num(-1.0)) for x, y in fields
    )


def fresh(layout: TokenLayout, step: int = 0, d: int = 2) -> Feature:
    values = torch.randn(layout.batch, layout.tokens, d, generator=torch.Generator().manual_seed(step))
    return Feature.fresh(values, layout, step, sigma=1 - step / 10)


def bools(like: Tensor, seed: int) -> Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed)) < 0.5


# ---- token maps


@given(pairs())
def test_a_map_agrees_with_maps_painted_on_the_plane(both: tuple[TokenLayout, TokenLayout]) -> None:
    """Numbers of the old tokens, painted on the fine grid and read off under the new tokens."""
    old, new = both
    tokens, count = map_tokens(old, new), new.coarse_index.shape[1]
    numbers = torch.arange(old.tokens).float().expand(old.batch, -1)[..., None]
    painted = plane(numbers, old)[:, 0].flatten(1).long()
    for b in range(old.batch):
        for j in range(new.tokens):
            if j < count:
                y, x = divmod(int(new.coarse_index[b, j]), old.cells[1])
                places = [(2 * y + r) * 2 * old.cells[1] + 2 * x + c for r in (0, 1) for c in (0, 1)]
                expected = painted[b, places].tolist()
                assert tokens.children[b, j].tolist() == expected
                kind = Kind.MERGED if len(set(expected)) == 4 else Kind.KEPT
            else:
                expected = [int(painted[b, new.fine_index[b, j - count]])]
                kind = Kind.SPLIT if expected[0] < old.coarse_index.shape[1] else Kind.KEPT
            assert (tokens.source[b, j], tokens.kind[b, j]) == (expected[0], kind)


@given(layouts())
def test_a_layout_maps_to_itself_by_keeping_all(layout: TokenLayout) -> None:
    tokens = map_tokens(layout, TokenLayout(layout.refined.clone(), layout.patch))
    assert (tokens.kind == Kind.KEPT).all() and not tokens.merges
    assert torch.equal(tokens.source, torch.arange(layout.tokens).expand(layout.batch, -1))


@given(layouts())
def test_a_plane_is_what_the_layout_paints(layout: TokenLayout) -> None:
    values = torch.randn(layout.batch, layout.tokens, 3)
    unit = TokenLayout(layout.refined, patch=1)
    assert torch.equal(plane(values, layout), unit.expand(values))


# ---- transfer


@given(chains(), st.integers(0, 10**6), st.integers(0, 2), DTYPES)
def test_refining_in_two_steps_is_refining_in_one(
    chain: list[TokenLayout], seed: int, extra: int, dtype: torch.dtype
) -> None:
    """(2) A -> B -> C equals A -> C where each refines the one before; coarsening between would lose information."""
    a, b, c = chain
    feature = feature_on(a, seed, extra, dtype)
    assert same(moved_to(moved_to(feature, b), c), moved_to(feature, c))


@given(chains(2), st.integers(0, 10**6), DTYPES)
def test_refining_and_coarsening_gives_the_bits_back(chain: list[TokenLayout], seed: int, dtype: torch.dtype) -> None:
    coarse, fine = chain
    feature = feature_on(coarse, seed, dtype=dtype)
    back = moved_to(moved_to(feature, fine), coarse)
    assert torch.equal(back.values, feature.values) and torch.equal(back.step, feature.step)
    assert (back.mark <= feature.mark).all() and torch.equal(back.mark == Mark.EMPTY, feature.mark == Mark.EMPTY)


@given(pairs(), st.integers(0, 10**6), st.integers(0, 2), st.booleans())
def test_transfer_by_kind(both: tuple[TokenLayout, TokenLayout], seed: int, extra: int, noisy: bool) -> None:
    """(2) KEPT tokens keep their bits; SPLIT ones are their parent's, MERGED ones the mean, both INHERITED."""
    old, new = both
    feature, tokens = feature_on(old, seed, extra), map_tokens(old, new)
    changed = bools(tokens.kind, seed) if noisy else None
    moved = feature.move(new, tokens, changed)
    assert moved.layout is new and moved.extra == extra
    assert torch.equal(moved.values[:, new.tokens :], feature.values[:, old.tokens :])
    for b in range(old.batch):
        for j in range(new.tokens):
            kind, touched = tokens.kind[b, j], changed is not None and bool(changed[b, j])
            where = tokens.children[b, j] if kind == Kind.MERGED else tokens.source[b, j : j + 1]
            marks, ages = feature.mark[b, where], feature.step[b, where]
            best = Mark.VALID if kind == Kind.KEPT and not touched else Mark.INHERITED
            assert moved.mark[b, j] == min(int(marks.min()), best)
            assert moved.step[b, j] == ages.min()
            assert moved.sigma[b, j] == feature.sigma[b, where[ages.argmin()]]
            if kind == Kind.MERGED:
                torch.testing.assert_close(moved.values[b, j], feature.values[b, where].mean(0))
            else:
                assert torch.equal(moved.values[b, j], feature.values[b, where[0]])


@given(pairs(), st.integers(0, 10**6))
def test_mirroring_the_plane_mirrors_the_transfer(both: tuple[TokenLayout, TokenLayout], seed: int) -> None:
    """(7) Geometry, not token order, decides."""
    old, new = both
    mirrored_old, mirrored_new = (TokenLayout(x.refined.flip(2), x.patch) for x in both)
    feature = feature_on(old, seed)
    unit = TokenLayout(mirrored_old.refined, 1)
    flipped = unit.reduce(plane(feature.values, old).flip(3))
    result = moved_to(Feature.fresh(flipped, mirrored_old, 0, 1.0), mirrored_new)
    torch.testing.assert_close(plane(result.values, mirrored_new).flip(3), plane(moved_to(feature, new).values, new))


@given(pairs(), st.integers(0, 10**6))
def test_a_sample_is_transferred_as_if_alone(both: tuple[TokenLayout, TokenLayout], seed: int) -> None:
    old, new = both
    feature, last = feature_on(old, seed), [old.batch - 1]
    alone = moved_to(some_of(feature, last), TokenLayout(new.refined[-1:], new.patch))
    assert same(alone, some_of(moved_to(feature, new), last))


# ---- sub-batches


@given(layouts(), st.integers(0, 10**6), st.booleans(), st.booleans())
def test_put_replaces_the_chosen_samples_alone(layout: TokenLayout, seed: int, ours_apart: bool, whole: bool) -> None:
    """Also where only one of both has stamps of single tokens; and the marks counted are those that there are."""
    ours = feature_on(layout, seed) if ours_apart else fresh(layout, 3, d=3)
    theirs = fresh(layout, 5, d=3) if whole else feature_on(layout, seed + 1)
    chosen = [k for k in range(layout.batch) if k == 0 or bools(torch.empty(layout.batch), seed)[k]]
    others = [k for k in range(layout.batch) if k not in chosen]
    _ = ours.counts, theirs.counts
    merged = ours.put(chosen, torch.tensor(chosen), some_of(theirs, chosen))
    assert merged.layout is layout and same(some_of(merged, chosen), some_of(theirs, chosen))
    assert not others or same(some_of(merged, others), some_of(ours, others))
    told = theirs.passes, ours.passes
    assert merged.passes == tuple(told[k in others][k] for k in range(layout.batch))
    counted = [[int((row == mark).sum()) for mark in Mark] for row in merged.mark]
    assert [list(count) for count in merged.counts] == counted


@given(layouts(), st.integers(0, 10**6))
def test_what_the_host_knows_is_what_the_stamps_say(layout: TokenLayout, seed: int) -> None:
    """Of samples computed at steps of their own, one of which never was: by passes alone, and written out by token."""
    ledger, levels = Ledger(), (0.9, 0.7)
    for step, sigma in enumerate(levels):
        chosen = sorted({k for k in range(layout.batch) if bools(torch.empty(layout.batch), seed + step)[k]} | {0})
        samples = Samples.of(chosen, layout.refined.device)
        ledger.record("r", torch.ones(len(chosen), layout.tokens, 2), layout, step, sigma, samples, keep=2)
    for node in ledger.nodes("r", layout):
        stamps, written = node.stamps, replace(node, apart=node.stamps)
        assert node.apart is None and node.counts == written.counts
        for inherited in (False, True):
            assert torch.equal(node.readable(inherited), written.readable(inherited))
            torch.testing.assert_close(node.level(inherited), written.level(inherited), equal_nan=True)
        assert node.at is None or (stamps.sigma == torch.tensor(node.at)).all()


# ---- some tokens alone


@given(layouts(), st.integers(0, 10**6), st.integers(0, 2), st.integers(1, 3), st.data())
def test_recording_some_tokens_moves_their_history_alone(
    layout: TokenLayout, seed: int, extra: int, keep: int, data: st.DataObject
) -> None:
    """Some samples, some tokens, some steps: each token's history is what a list of its own would hold."""
    generator, ledger = torch.Generator().manual_seed(seed), Ledger()
    shape = (layout.batch, layout.tokens + extra, 2)
    whole = torch.randn(shape, generator=generator)
    ledger.record("r", whole, layout, 0, 1.0, keep=keep)
    told = [[[(0, whole[b, j])] for j in range(layout.tokens)] for b in range(layout.batch)]
    for step in range(1, data.draw(st.integers(1, 4)) + 1):
        rows = torch.tensor(data.draw(st.sets(st.integers(0, layout.batch - 1), min_size=1).map(sorted)))
        count = data.draw(st.integers(1, layout.tokens))
        tokens = torch.rand(len(rows), layout.tokens, generator=generator).argsort(1)[:, :count]
        values = torch.randn(len(rows), count, 2, generator=generator)
        ledger.record_tokens("r", values, layout, step, 1 - step / 10, rows, tokens, keep)
        for row, sample in enumerate(rows.tolist()):
            for place, token in enumerate(tokens[row].tolist()):
                told[sample][token] = [(step, values[row, place]), *told[sample][token]][:keep]
    for k in range(keep):
        feature = ledger.get("r", layout, k)
        if feature is None:
            assert all(len(history) <= k for sample in told for history in sample)
            continue
        assert feature.layout is layout and feature.values.shape == shape
        for b in range(layout.batch):
            for j in range(layout.tokens):
                if k < len(told[b][j]):
                    step, expected = told[b][j][k]
                    assert torch.equal(feature.values[b, j], expected) and feature.mark[b, j] == Mark.VALID
                    assert (feature.step[b, j], feature.sigma[b, j]) == (step, torch.tensor(1 - step / 10))
                else:
                    assert feature.mark[b, j] == Mark.EMPTY and feature.sigma[b, j].isnan()
    newest = ledger.get("r", layout)
    assert newest is not None
    assert torch.equal(newest.values[:, layout.tokens :], whole[:, layout.tokens :]), "these have no marks, and stay"


@given(layouts(), st.integers(0, 10**6))
def test_recording_all_tokens_one_by_one_is_recording_the_samples(layout: TokenLayout, seed: int) -> None:
    order = torch.rand(layout.batch, layout.tokens, generator=torch.Generator().manual_seed(seed)).argsort(1)
    every = torch.arange(layout.batch)
    ledgers = [Ledger(), Ledger()]
    for step in range(3):
        values = fresh(layout, seed + step).values
        ledgers[0].record("r", values, layout, step, 1 - step / 10, keep=2)
        if step == 0:
            ledgers[1].record("r", values, layout, step, 1.0, keep=2)
        else:
            ledgers[1].record_tokens("r", take(values, order), layout, step, 1 - step / 10, every, order, keep=2)
    for older in (0, 1):
        one, other = (ledger.get("r", layout, older) for ledger in ledgers)
        assert one is not None and other is not None and same(one, other)


@given(layouts(), st.integers(0, 10**6), st.booleans())
def test_levels_by_token_are_nan_where_unreadable(layout: TokenLayout, seed: int, inherited: bool) -> None:
    """(3) And for the rows that ride along, of which only the newest values are known."""
    feature, ledger = feature_on(layout, seed, extra=2), Ledger()
    ledger.store("r", feature)
    ((levels, values),) = ledger.history("r", layout, inherited, by_token=True)
    assert values is feature.values and levels.shape == values.shape[:2]
    good = feature.mark >= (Mark.INHERITED if inherited else Mark.VALID)
    assert torch.equal(levels[:, : layout.tokens].isnan(), ~good) and levels[:, layout.tokens :].isnan().all()
    assert torch.equal(levels[:, : layout.tokens][good], feature.sigma[good])


@given(layouts(), st.integers(0, 10**6))
def test_forecasts_by_token_of_what_is_linear_in_sigma_are_exact(layout: TokenLayout, seed: int) -> None:
    """Each token on the line through its own last two values, whenever those were computed."""
    at_0, slope = fresh(layout, seed).values, fresh(layout, seed + 1).values
    ledger = Ledger()
    for step, sigma in enumerate((1.0, 0.9)):
        ledger.record("r", at_0 + sigma * slope, layout, step, sigma, keep=2)
    for step, sigma in ((2, 0.75), (3, 0.5)):
        tokens = bools(torch.empty(layout.batch, layout.tokens), seed + step).float().argsort(1)[:, -1:]
        values = take(at_0 + sigma * slope, tokens)
        ledger.record_tokens("r", values, layout, step, sigma, torch.arange(layout.batch), tokens, keep=2)
    forecast = extrapolate(ledger.history("r", layout, by_token=True), 0.3, 1)
    torch.testing.assert_close(forecast, at_0 + 0.3 * slope, atol=1e-4, rtol=1e-4)


def test_one_value_is_kept_unless_more_are_asked_for() -> None:
    layout, ledger = TokenLayout.coarse(1, 1, 2, patch=2), Ledger()
    for step in range(2):
        ledger.record("r", torch.full((1, 2, 3), float(step)), layout, step, 1.0 - step / 2)
    assert [node.step.tolist() for node in ledger.nodes("r", layout)] == [[[1, 1]]]


def test_how_much_each_token_changed_is_relative_to_what_it_was() -> None:
    layout, ledger = TokenLayout.coarse(1, 1, 2, patch=2), Ledger()
    before, now = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]), torch.tensor([[[3.0, 14.0], [0.0, 0.0]]])
    ledger.record(RESIDUAL, before, layout, 0, 1.0, keep=2)
    assert not token_changes(ledger, layout).any(), "nothing before"
    ledger.record(RESIDUAL, now, layout, 1, 0.5, keep=2)
    assert token_changes(ledger, layout).tolist() == [[2.0, 0.0]]
    assert [level for level, _ in ledger.uniform_history(RESIDUAL, layout, 2)] == [0.5, 1.0], "which the host knows"


def test_recording_tokens_needs_the_right_layout_and_something_recorded() -> None:
    """(1)"""
    layout, ledger = TokenLayout.coarse(1, 1, 2, patch=2), Ledger()
    row, tokens, values = torch.tensor([0]), torch.tensor([[1]]), torch.zeros(1, 1, 3)
    with pytest.raises(ValueError, match="'r' must be recorded for all tokens before it is for some"):
        ledger.record_tokens("r", values, layout, 1, 0.5, row, tokens)
    ledger.record("r", torch.zeros(1, 2, 3), layout, 0, 1.0)
    with pytest.raises(StaleFeature):
        other = TokenLayout(layout.refined.clone(), layout.patch)
        ledger.record_tokens("r", values, other, 1, 0.5, row, tokens)


# ---- reading


@given(layouts(), layouts())
def test_no_feature_is_read_under_another_layout(layout: TokenLayout, other: TokenLayout) -> None:
    """(1) Neither under one of the same shape nor under one that refines the same cells."""
    ledger = Ledger()
    ledger.store("residual", fresh(layout))
    assert ledger.read("residual", layout) is not None
    for wrong in (other, TokenLayout(layout.refined.clone(), layout.patch)):
        for access in (ledger.read, ledger.history, ledger.get):
            with pytest.raises(StaleFeature, match=rf"{id(layout):#x} .*, not to layout {id(wrong):#x}"):
                access("residual", wrong)
        with pytest.raises(StaleFeature):
            ledger.record("residual", torch.zeros(wrong.batch, wrong.tokens, 2), wrong, 1, 0.5)


@given(pairs(), st.integers(0, 10**6), st.booleans())
def test_marks_decide_who_may_read(both: tuple[TokenLayout, TokenLayout], seed: int, noisy: bool) -> None:
    """(3) INHERITED only where the reader says so, EMPTY never."""
    old, new = both
    ledger, tokens = Ledger(), map_tokens(old, new)
    ledger.store("residual", fresh(old))
    changed = bools(tokens.kind, seed) if noisy else None
    ledger.move(new, tokens, changed)
    untouched = tokens.kind == Kind.KEPT
    if changed is not None:
        untouched &= ~changed
    strict, lenient = ledger.read("residual", new), ledger.read("residual", new, inherited=True)
    assert strict is not None and lenient is not None and strict.values is lenient.values
    assert torch.equal(strict.readable, untouched.all(1)) and lenient.readable.all()
    holes = bools(tokens.kind, seed + 1)
    ledger.store("residual", emptied_at(ledger.get("residual", new), holes))
    emptied = ledger.read("residual", new, inherited=True)
    assert emptied is not None and torch.equal(emptied.readable, ~holes.any(1))
    held = ledger.get("residual", new)
    assert held is not None
    counts = torch.tensor(held.counts)
    assert torch.equal(counts[:, Mark.EMPTY], holes.sum(1)) and (counts.sum(1) == new.tokens).all()
    assert torch.equal(counts[:, Mark.VALID], (untouched & ~holes).sum(1))


# ---- the ledger as a book


def test_histories_are_kept_per_sample_newest_first() -> None:
    layout = TokenLayout.coarse(2, 1, 1, patch=2)
    ledger = Ledger()
    for step, rows in enumerate([None, [1], [0, 1], [1]]):
        count = 2 if rows is None else len(rows)
        index = None if rows is None else Samples.of(rows, torch.device("cpu"))
        ledger.record("r", torch.full((count, 1, 1), float(step)), layout, step, 1 - step / 10, index, keep=3)
    assert len(ledger) == len(ledger.nodes("r", layout)) == 3
    history = ledger.history("r", layout)
    assert [values.flatten().tolist() for _, values in history] == [[2, 3], [0, 2], [0, 1]]
    torch.testing.assert_close(
        torch.stack([level for level, _ in history]),
        torch.tensor([[0.8, 0.7], [1.0, 0.8], [torch.nan, 0.9]]), equal_nan=True,
    )  # fmt: skip
    assert ledger.nodes("r", layout)[2].counts == ((1, 0, 0), (0, 0, 1))
    moved = TokenLayout.fine(2, 1, 1, patch=2)
    ledger.move(moved, map_tokens(layout, moved))
    assert [bool(level.isnan().all()) for level, _ in ledger.history("r", moved)] == [True] * 3
    inherited = torch.stack([level for level, _ in ledger.history("r", moved, inherited=True)])
    torch.testing.assert_close(inherited[0], torch.tensor([0.8, 0.7]))


def test_whole_batches_are_kept_without_a_copy() -> None:
    layout = TokenLayout.coarse(2, 2, 2, patch=2)
    first, second = torch.zeros(2, 5, 3), torch.ones(2, 5, 3)
    ledger = Ledger()
    ledger.record("r", first, layout, 0, 1.0, keep=2)
    ledger.record("r", second, layout, 1, 0.9, Samples.of([0, 1], first.device), keep=2)
    assert [values.data_ptr() for _, values in ledger.history("r", layout)] == [second.data_ptr(), first.data_ptr()]
    assert ledger.nbytes == 2 * first.nbytes, "what is known of them is written out when somebody asks"
    _ = ledger.nodes("r", layout)[0].mark
    assert ledger.nbytes == 2 * first.nbytes + 2 * 4 * (4 + 4 + 1)
    ledger.clear()
    assert ledger.nbytes == len(ledger) == 0 and "r" not in ledger
    assert ledger.read("r", layout) is None and ledger.history("r", layout) == []


def test_a_layout_without_a_common_plane_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cells \(1, 2\).*cells \(2, 1\)"):
        map_tokens(TokenLayout.coarse(1, 1, 2, patch=2), TokenLayout.coarse(1, 2, 1, patch=2))


def test_errors_name_what_was_given() -> None:
    layout = TokenLayout.coarse(2, 1, 2, patch=2)
    with pytest.raises(ValueError, match=r"expected values \(2, 2 or more, d\).*got \(2, 1, 3\)"):
        Feature.fresh(torch.zeros(2, 1, 3), layout, 0, 1.0)
    with pytest.raises(ValueError, match=r"changed must be \(2, 2\) bool, got \(2, 3\)"):
        moved_to(fresh(layout), layout, torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="keep must be 1 or more, got 0"):
        Ledger().record("r", torch.zeros(2, 2, 1), layout, 0, 1.0, keep=0)
    with pytest.raises(ValueError, match=r"stamps must be \(2, 2\), got \(2, 1\)"):
        replace(fresh(layout), apart=Stamps(*torch.zeros(3, 2, 1)))
    with pytest.raises(ValueError, match=r"got .* and 1 passes"):
        replace(fresh(layout), passes=(NEVER,))
