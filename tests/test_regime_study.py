"""The regime's study and search on made-up pictures: rendered scenes, the softer the fewer the steps."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence import again, known, readme
from benchmarks.regime import clock, pictures, search, study, study_page
from benchmarks.regime import settings as chosen
from benchmarks.regime.setting import Drawn, Setting, scheduler_of
from benchmarks.regime.settings import FULL, REFERENCE, REGIMES, settings
from benchmarks.regime.study import Study, latest, remeasure, run, shelve, turns
from benchmarks.regime.study_page import Compared, compared, write
from benchmarks.tiny_flux.render import render
from benchmarks.tiny_flux.scenes import sample_scene
from ralu_cache import Guidance
from ralu_cache.models.embedded import TINY_FLUX
from ralu_cache.quality.likeness import EQUAL_DB
from tests.test_regime import blurred

PROMPTS = pictures.scene_prompts("study", 32)


class Fake:
    """Draws the prompts' own scenes, blurred where the setting has few steps, and counts the calls."""

    def __init__(self, split: str = "study") -> None:
        rng = np.random.default_rng(pictures.SPLITS[split])
        self.scenes = {scene.prompt: scene for scene in (sample_scene(rng) for _ in range(64))}
        self.calls: list[str] = []

    def __call__(self, model: str, setting: Setting, prompts: Sequence[str], seeds: Sequence[int]) -> Drawn:
        self.calls.append(setting.name)
        shown = np.stack([render(self.scenes[prompt]) for prompt in prompts]).astype(np.float32) / 255
        ratio = 1.0 if setting.name == FULL else 10.0
        return Drawn(blurred(shown, 0 if setting.name == FULL else 20), ratio, 10 / ratio, 5 / ratio)


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Four settings, few resamplings; of one batch alone what is measured of few, and by no network."""
    patch.setattr(chosen, "FEW", (FULL, "ralu-12x", "ralu-15x", "4 plain steps"))
    patch.setattr(study, "PERCEPTUAL", 1)
    quick = replace(study.MEASURES["perceptual"], of=lambda a, b, _: 1000 * np.abs(a - b).mean((1, 2, 3)))
    patch.setitem(study.MEASURES, "perceptual", quick)
    patch.setattr(study_page, "DRAWS", 10)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    fake, folder = Fake(), tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        run(Study("tiny-flux", folder, folder / "shelf", fake), few=True, count=32)
    return folder, fake.calls


@pytest.fixture
def drawn(once: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Fake]:
    """A study of 32 pictures, of which each test has its own copy."""
    shorten(monkeypatch)
    shutil.copytree(once[0], tmp_path / "study")
    fake = Fake()
    fake.calls += once[1]
    return Study("tiny-flux", tmp_path / "study", tmp_path / "study" / "shelf", fake), fake


def test_what_was_drawn_is_not_drawn_again(drawn: tuple[Study, Fake]) -> None:
    made, fake = drawn
    once = len(fake.calls)
    names = {(regime, one.name) for regime in REGIMES for one in settings("tiny-flux", regime, few=True)}
    assert len(made.rows()) == 2 * len(names), "a line for each setting and batch"
    run(made, few=True, count=32)
    assert len(fake.calls) == once
    last = made.path.read_text().splitlines()[:-1]
    made.path.write_text("\n".join(last) + "\n")
    run(made, few=True, count=32)
    assert len(fake.calls) == once + 1
    assert {row["start"] for row in made.rows()} == {0, 16}


def test_both_regimes_full_runs_are_drawn_once_where_they_are_one(drawn: tuple[Study, Fake]) -> None:
    made, fake = drawn
    rows = [row for row in made.rows() if row["setting"] == FULL and row["start"] == 0]
    assert [row["regime"] for row in rows] == list(REGIMES)
    assert fake.calls.count(FULL) == 2 * len({row["made"] for row in rows})


def test_every_setting_comes_first_in_its_turn_and_full_runs_before_all() -> None:
    orders = [[one.name for _, one in turns("tiny-flux", True, batch)] for batch in range(40)]
    assert orders[0][2:4] == [REFERENCE, REFERENCE] and all(REFERENCE not in order for order in orders[4:])
    later = orders[4:]
    assert all(order[:2] == [FULL, FULL] and sorted(order) == sorted(later[0]) for order in later)
    assert {order[2] for order in later} == set(later[0]) - {FULL}


def test_sweeps_end_early() -> None:
    def drawn_of(model: str, batch: int) -> set[str]:
        return {one.name for _, one in turns(model, False, batch)}

    for model in ("tiny-flux", "tiny-flux-dev"):
        early, late = drawn_of(model, 3), drawn_of(model, 4)
        assert early - late >= {"MagCache 0.06", REFERENCE, "ralu-8x and toca"}
        assert "MagCache 0.3 on 14 steps" in late, "the caches that go farthest are drawn like ours"


def test_nothing_that_only_moves_an_interval_stands_where_guidance_is_distilled() -> None:
    for regime in REGIMES:
        guided = [one for one in settings("tiny-flux-dev", regime) if one.guidance is not None]
        assert not guided and "ralu-15x" not in {one.name for one in settings("tiny-flux-dev", regime)}


def test_lines_of_a_setting_that_changed_its_meaning_do_not_count(drawn: tuple[Study, Fake]) -> None:
    made, _ = drawn
    rows = made.rows()
    whole = latest(rows, made.model)
    for row in rows:
        if row["setting"] == "ralu-15x" and row["start"] == 0:
            row["made"] = "other"
    assert set(latest(rows, made.model)["strong"]["ralu-15x"]) == {16}
    assert set(whole["strong"]["ralu-15x"]) == {0, 16}
    a, b = (Setting("a", 6.0, spatial="ralu-15x", guidance=rule) for rule in (None, Guidance(end=0.5)))
    assert a.made != b.made and a.made == Setting("a", 6.0, spatial="ralu-15x").made


def test_lines_of_other_weights_do_not_count(drawn: tuple[Study, Fake]) -> None:
    made, _ = drawn
    rows = made.rows()
    assert {row["weights"] for row in rows} == {made.weights}
    other = [row | {"weights": "others"} if row["start"] == 0 else row for row in rows]
    made.path.write_text("".join(json.dumps(row) + "\n" for row in other))
    assert {row["start"] for row in made.rows()} == {16}


def test_likeness_is_told_to_the_reference_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "FEW", (FULL, REFERENCE, "ralu-12x"))
    monkeypatch.setattr(study, "measured", lambda *_: {})
    fake = Fake()
    made = Study("tiny-flux", tmp_path, tmp_path / "shelf", fake)
    run(made, few=True, count=16)
    assert fake.calls.count(REFERENCE) == 1, "both regimes' is one, so it is drawn once"
    rows = {row["setting"]: row for row in made.rows() if row["regime"] == "strong"}
    assert not {"psnr_150", "ssim_150"} & rows[REFERENCE].keys()
    assert np.mean(rows["ralu-12x"]["psnr_150"]) == EQUAL_DB, "the fake blurs both alike"


def test_numbers_are_paired_with_the_full_run(drawn: tuple[Study, Fake]) -> None:
    made, _ = drawn
    one = next(each for each in compared(made, "strong") if each.name == "ralu-12x")
    assert one.count == 32 and one.ratio == 10 and one.faster() == pytest.approx(10)
    assert one.difference("attributes").high < 0 and one.difference("sharpness").high < 0
    lone = Compared("one batch", {16: one.parts[16]}, one.full)
    assert lone.count == 16 and (lone.values("attributes") == one.values("attributes")[16:]).all()
    assert one.values("psnr").max() < 40 and np.isfinite(one.values("psnr")).all()


def test_what_the_shelf_lost_is_drawn_again_without_a_row(drawn: tuple[Study, Fake]) -> None:
    made, fake = drawn
    before, rows = len(fake.calls), made.path.read_text()
    lost = [made.kept("strong", "ralu-12x", 16), made.kept("best", FULL, 0)]
    shown = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    shelve(made)
    assert [path.read_bytes() for path in lost] == shown and made.path.read_text() == rows
    assert fake.calls[before:] == ["ralu-12x", FULL]
    made.record.write_text(json.dumps({f"tiny-flux/strong/ralu-12x/{count}": [1, 1, 1] for count in (16, 32)}))
    lost[0].unlink()
    shelve(made)
    assert not lost[0].exists(), "whose distance is known already"


def test_measures_are_made_again_from_the_kept_pictures(drawn: tuple[Study, Fake]) -> None:
    made, _ = drawn
    rows = [row for row in made.rows() if row["setting"] in (FULL, "ralu-15x") and row["start"] == 16]
    made.path.write_text("")
    for row in rows:
        made.add(row)
    before = made.path.read_text()
    spoilt = [row | {"attributes": [0.0] * 16} for row in rows]
    made.path.write_text("".join(json.dumps(row) + "\n" for row in spoilt))
    remeasure(made)
    assert made.path.read_text() == before


@pytest.mark.slow
def test_the_page_says_what_is_there(drawn: tuple[Study, Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = drawn
    text = write([made, Study("tiny-sd3", made.out, made.shelf)])
    assert "## tiny-flux, strong guidance" in text and "tiny-sd3" not in text.split("\n## ", 1)[1]
    line = next(line for line in text.splitlines() if line.startswith("| ralu-12x | 6 | 32 | 10.0x | 10.0x"))
    assert line.count("(") == 4, "an interval for each of what is drawn"
    assert (made.out / "study_tiny-flux.png").stat().st_size < 900_000
    monkeypatch.setattr(study_page, "frechet", lambda *_: pytest.fail("known"))
    monkeypatch.setattr(study_page, "strip", lambda *_: None)  # it was drawn above
    assert write([made]) == write([made]) == (made.out / "study.md").read_text()


def test_the_readmes_table_has_a_row_for_each_preset(
    drawn: tuple[Study, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = drawn
    monkeypatch.setattr(known, "NEEDED", (FULL, "ralu-12x"))
    monkeypatch.setattr(readme, "FOUND", {"tiny-flux": None, "tiny-sd3": None})
    *lines, _, words = readme.main_table(made.out).splitlines()
    assert re.fullmatch(r"Points of .* drawn: tiny-flux \(32\) 12x -?\d+\.\d, 15x -?\d+\.\d\.", words)
    assert lines[0].count("fewer FLOPs (faster)") == 1, "a model of which nothing was drawn is left out"
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| `ralu-12x`", "| `ralu-15x`"]
    assert lines[3].startswith("| `ralu-12x` | 10x (10x) | ") and "±" not in lines[3] and lines[3].count(" to ") == 1


def test_what_a_model_lacks_is_an_empty_cell(drawn: tuple[Study, Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = drawn
    monkeypatch.setattr(known, "NEEDED", (FULL, "ralu-12x"))
    found = readme.found_of(made)[1]
    lacking = {name: cells for name, cells in found.items() if name != "ralu-15x"}
    monkeypatch.setattr(readme, "FOUND", {"a": None, "b": None})
    monkeypatch.setattr(readme, "pictures_of", lambda *_: 32)
    monkeypatch.setattr(readme, "lost", lambda study: "")
    monkeypatch.setattr(readme, "found_of", lambda study: ("95.0", found if study.model == "a" else lacking))
    (line,) = (line for line in readme.main_table(made.out).splitlines() if line.startswith("| `ralu-15x`"))
    assert line.endswith("| – | – | – |") and line.count("–") == 3


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="'heun'; accepted: euler, unipc"):
        Setting("a", 3.0, solver="heun")
    with pytest.raises(ValueError, match="unipc is for stock runs"):
        Setting("a", 3.0, solver="unipc", guidance="early")
    with pytest.raises(ValueError, match="'tiny-wan', regime 'strong'; accepted: tiny-flux"):
        settings("tiny-wan", "strong")
    with pytest.raises(SystemExit):
        study.main(["--pictures", "17"])


@pytest.mark.parametrize("solver", ["unipc", "dpm++2m"])
def test_stock_solvers_have_the_levels_of_flow_matching(solver: str) -> None:
    scheduler = scheduler_of(None, Setting("a", 3.0, 7, 2.5, solver))
    scheduler.set_timesteps(7, device="cpu", mu=0.3)
    even = np.arange(7, -1, -1) / 7
    assert scheduler.sigmas.numpy() == pytest.approx(2.5 * even / (1 + 1.5 * even), abs=2e-3)
    assert scheduler.config.prediction_type == "flow_prediction" and scheduler.config.solver_order == 2


def test_plain_steps_have_their_own_shift_and_the_full_run_the_models() -> None:
    pipe = TINY_FLUX.load()
    assert scheduler_of(pipe.scheduler, Setting("full", 6.0)) is pipe.scheduler
    scheduler = scheduler_of(pipe.scheduler, Setting("a", 6.0, 7, 2.5))
    assert scheduler.config.shift == 2.5 and not scheduler.config.use_dynamic_shifting


def test_a_search_goes_on_and_shows_its_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake("train")
    monkeypatch.setattr(search, "draw", fake)
    arguments = ["--prompts", "16", "--groups", "intervals", "--out", str(tmp_path)]
    search.main(arguments)
    once = len(fake.calls)
    search.main(arguments)
    assert len(fake.calls) == once == 1 + len([*search.intervals()])
    text = (tmp_path / "search.md").read_text()
    assert "## tiny-flux: intervals" in text and "plans" not in text and text.count("| full | 16 | 1.0x |") == 1
    names = [one.name for group in search.GROUPS.values() for one in group()]
    assert len(names) == len(set(names)), "a name means one setting"


def test_the_clock_compares_within_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[str] = []

    def fake(model: str, setting: Setting, *given: object) -> Drawn:
        orders.append(setting.name)
        slow = 1 + len(orders) // len(clock.SETTINGS)  # every round is slower than the one before
        ratio = 1.0 if setting.name == FULL else 8.0
        return Drawn(np.zeros((1, 8, 8, 3), np.float32), ratio, slow * 8 / ratio, 1.0)

    monkeypatch.setattr(clock, "draw", fake)
    monkeypatch.setattr(clock, "load", lambda *_: None)
    clock.main(["--models", "tiny-flux", "--rounds", "3", "--out", str(tmp_path)])
    rounds = [orders[start : start + len(clock.SETTINGS)] for start in range(0, len(orders), len(clock.SETTINGS))]
    assert len(rounds) == 4 and all(each[0] == FULL for each in rounds) and len({each[1] for each in rounds[1:]}) == 3
    assert "| ralu-12x | 3 | 8.0x | 8.0x (" in (tmp_path / "clock.md").read_text()


def test_what_is_held_is_told_beyond_the_full_run(drawn: tuple[Study, Fake]) -> None:
    made, _ = drawn
    rows = compared(made, "strong")
    assert study_page.costs_table(made, rows) == []
    costs = {
        f"tiny-flux/{one.parts[0]['made']}": {"samples": 20, "held": 1024 * kept, "flux": kept << 20}
        for one, kept in zip(rows, (16, 48), strict=False)
    }  # fmt: skip
    (made.out / "costs.json").write_text(json.dumps(costs))
    text = "\n".join(study_page.costs_table(made, rows))
    assert "| ralu-12x | 10.0x | 10.0x | 20 | 32 KiB | 32 MiB |" in text and "| 20 | 0 KiB | 0 MiB |" in text


def test_a_random_tenth_comes_out_again(drawn: tuple[Study, Fake]) -> None:
    made, _ = drawn
    rows = again.chosen(made, 0.3, 0)
    assert len(rows) == round(0.3 * 6) and all(row["setting"] != FULL for row in rows)
    full = {again.batch(row): again.drawn(made, row, FULL)[0] for row in rows}
    found = [again.again(made, row, full[again.batch(row)]) for row in rows]
    page = again.table(found)
    assert f"| tiny-flux | {len(rows)} | {len(rows)} | +0; 0 (0) |" in page
    rows[0] |= {"attributes": [value - 1 for value in rows[0]["attributes"]]}
    assert again.again(made, rows[0], full[again.batch(rows[0])])["attributes"][2] == 1
