"""The regime's studies on made-up pictures: rendered scenes, the softer the fewer the steps."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.counted import Counted
from benchmarks.regime import eye, guidance, measures, pictures
from benchmarks.regime.drawing import judged
from benchmarks.regime.measures import OTHER, good, ordered_share, rank_agreement, verdict
from benchmarks.regime.peers import called_apart, parsed, peer
from benchmarks.regime.pictures import BATCH, PlainRun, Shelf, scene_prompts
from benchmarks.regime.rivals import GENTLER, PEERS
from benchmarks.regime.setting import Setting, arguments
from benchmarks.tiny_flux.render import render
from benchmarks.tiny_flux.scenes import sample_scene
from ralu_cache import RALU, TaylorSeer, accelerate
from ralu_cache.temporal import resolve_temporal
from tests.pipelines import make_pipeline
from tests.pipelines import pictures as drawn


def blurred(shown: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        shown = (shown + np.roll(shown, 1, 1) + np.roll(shown, 1, 2) + np.roll(shown, (1, 1), (1, 2))) / 4
    return shown


def renders(run: PlainRun, start: int) -> np.ndarray:
    """The split's scenes themselves at 50 steps; blurred the more the fewer the steps; other seeds look elsewhere."""
    rng = np.random.default_rng(pictures.SPLITS[run.split])
    scenes = [sample_scene(rng) for _ in range(start + BATCH)][start:]
    shown = np.stack([render(scene) for scene in scenes]).astype(np.float32) / 255
    if run.first_seed:
        shown = np.roll(shown, 5, 2)
    return blurred(shown, {50: 0, 14: 1, 10: 2, 7: 4, 5: 8, 4: 12, 3: 20, 2: 30}[run.steps])


def test_prompts_of_a_split_begin_alike_and_splits_differ() -> None:
    assert scene_prompts("train", 20)[:5] == scene_prompts("train", 5)
    assert not set(scene_prompts("train", 200)) & set(scene_prompts("held-out", 200))
    with pytest.raises(ValueError, match="'test'; accepted: train, held-out"):
        scene_prompts("test", 3)


def test_a_run_is_named_by_its_weights_and_setting(tmp_path: Path) -> None:
    run = PlainRun("tiny-flux", 6.0, 50)
    assert run.name.startswith("tiny-flux-") and run.name.endswith("-g6-50-train-0")
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "a.safetensors").write_bytes(b"other weights")
    assert PlainRun("tiny-flux", 6.0, 50, folder=tmp_path).name != run.name
    assert len({run.name, PlainRun("tiny-flux", 6.5, 50).name, PlainRun("tiny-flux", 6.0, 50, "held-out").name}) == 3
    with pytest.raises(ValueError, match="tiny-wan"):
        PlainRun("tiny-wan", 6.0, 50)
    with pytest.raises(ValueError, match=r"got 50 and 0\.5"):
        PlainRun("tiny-flux", 0.5, 50)


def test_what_is_on_the_shelf_is_not_drawn_again(tmp_path: Path) -> None:
    calls = []

    def make(run: PlainRun, start: int) -> np.ndarray:
        calls.append(start)
        return np.full((BATCH, 4, 4, 3), start / 255, np.float32)

    shelf, run = Shelf(tmp_path, make), PlainRun("tiny-flux", 3.0, 5)
    assert shelf.pictures(run, 3).shape == (3, 4, 4, 3) and calls == [0]
    assert shelf.pictures(run, 12)[:, 0, 0, 0] * 255 == pytest.approx([0] * 8 + [8] * 4)
    assert calls == [0, 8]
    shelf.pictures(PlainRun("tiny-flux", 3.0, 6), 8)
    assert calls == [0, 8, 0], "another run is another"
    with pytest.raises(ValueError, match="count is 0"):
        shelf.pictures(run, 0)


def test_order_and_agreement_of_known_numbers() -> None:
    assert ordered_share([5, 4, 3, 3.5]) == pytest.approx(2 / 3)
    numbers = np.array([-2.0, 1.0])
    wanted = {"attributes": [-2, 1], "perceptual": [2, -1], "fine power": [-2, -1]}
    for name, values in wanted.items():
        assert good(measures.MEASURES[name], numbers).tolist() == values
    rising, falling, flat = np.arange(5.0), -np.arange(5.0), np.ones(5)
    assert rank_agreement([(rising, rising**3), (rising, flat)]) == pytest.approx(1)
    assert rank_agreement([(rising, falling)]) == pytest.approx(-1)
    assert rank_agreement([(flat, rising)]) == 0


def test_a_verdict_tells_what_is_there() -> None:
    rng = np.random.default_rng(0)
    harm = {"50": np.zeros(40), "14": rng.normal(0, 0.1, 40), "5": rng.uniform(1, 3, 40), OTHER: rng.normal(0, 0.1, 40)}
    judge = {name: 90 - 10 * each for name, each in harm.items()}
    found = verdict(measures.MEASURES["attributes"], judge, judge)
    assert found.told == {"14": False, "5": True, OTHER: False}
    assert found.means["5"].value == pytest.approx(judge["5"].mean()) and found.within == pytest.approx(1)
    distance = {name: 5 + 2 * each for name, each in harm.items()}
    compared = verdict(measures.MEASURES["perceptual"], distance, judge)
    assert "50" not in compared.means and compared.told == {"5": True, OTHER: False}
    assert (compared.within, compared.over_steps) == pytest.approx((1, 1)), "less distance is better"
    assert compared.of_means == pytest.approx(1)
    likeness = {**distance, OTHER: distance[OTHER] + 100}
    assert verdict(measures.MEASURES["perceptual"], likeness, judge).of_means < 0.6, "other seeds draw as well"


def test_the_study_of_measures_writes_what_it_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "Shelf", lambda folder: Shelf(folder, renders))
    monkeypatch.setattr(measures, "STEPS", (50, 10, 2))
    measures.main(["--prompts", "4", "--out", str(tmp_path), "--shelf", str(tmp_path / "shelf")])
    found = json.loads((tmp_path / "measures.json").read_text())["measures"]
    assert found["fine power"]["ordered"] == found["perceptual"]["ordered"] == 1
    assert found["gradient"]["told"]["2"] and found["gradient"]["means"]["2"]["value"] < -10
    assert found["attributes"]["means"]["50"]["value"] > 90 and not found["attributes"]["told"]["10"]
    assert found["psnr"]["told"][OTHER] and not found["gradient"]["told"][OTHER]
    page = (tmp_path / "measures.md").read_text()
    assert "| PSNR, dB | no | – |" in page and "| attributes, % | yes |" in page
    assert (tmp_path / "steps.png").exists()


def test_the_highest_guidance_is_the_last_that_is_not_told_from_the_best() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(60, 100, 50)
    noise = {scale: rng.normal(0, 1, 50) for scale in (3.0, 6.0, 8.0, 10.0)}
    values = {3.0: base - 0.2, 6.0: base, 8.0: base - 0.1, 10.0: base - 5}
    assert guidance.highest({scale: values[scale] + noise[scale] for scale in values}) == 8.0


def test_the_study_of_guidance_goes_on_with_other_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(run: PlainRun, start: int) -> np.ndarray:
        return blurred(renders(run, start), 40 if run.guidance == 10 else 0)

    monkeypatch.setattr(guidance, "Shelf", lambda folder: Shelf(folder, make))
    folders = ["--out", str(tmp_path), "--shelf", str(tmp_path / "shelf")]
    for model in ("tiny-flux", "tiny-sd3"):
        guidance.main(["--models", model, "--prompts", "8", "--scales", "3", "6", "10", *folders])
    found = json.loads((tmp_path / "guidance.json").read_text())
    assert list(found) == ["tiny-flux", "tiny-sd3"] and found["tiny-flux"]["highest"] == 6
    page = (tmp_path / "guidance.md").read_text()
    assert page.count("| **6** |") == 2 and (tmp_path / "guidance-tiny-sd3.png").exists()


def test_every_judge_gives_every_picture_a_number() -> None:
    shown = renders(PlainRun("tiny-flux", 6.0, 50), 0)
    each = judged(shown, scene_prompts("train", BATCH))
    assert {len(values) for values in each.values()} == {BATCH} and "probability" in each


def test_pairs_are_twenty_prompts_and_the_same_each_time() -> None:
    names = ["14", "10", "5", OTHER]
    found = eye.pairs(32, names)
    assert found == eye.pairs(32, names) and len({pair.prompt for pair in found}) == eye.PAIRS
    assert all(pair.a != pair.b for pair in found) and {pair.a for pair in found} == set(names)
    assert sum(names.index(pair.a) < names.index(pair.b) for pair in found) in range(4, 17), (
        "neither side is the better"
    )


def test_agreement_with_the_eye_of_known_answers() -> None:
    assert eye.agreement([1.0, -2.0, 3.0, 0.0], ["A", "A", "=", "B"]) == pytest.approx((1 + 0 + 0.5) / 3)
    shown = {run: renders(PlainRun("tiny-flux", 6.0, int(run)), 0) for run in ("50", "14", "3")}
    prompts = scene_prompts("train", BATCH)
    for name in ("perceptual", "probability", "fine power"):
        measure = measures.MEASURES[name]
        better = eye.preference(measure, shown, eye.Pair(2, "14", "3"), "50", prompts)
        assert better > 0 and eye.preference(measure, shown, eye.Pair(2, "3", "14"), "50", prompts) == -better
    assert eye.sheet(shown, [eye.Pair(0, "14", "3")] * 5, prompts).size == (4 * 524, 2 * 286)


def test_flops_of_a_peer_are_counted_as_they_run() -> None:
    """The whole call's are those that our report has of it; a cache of diffusers' leaves some out."""
    pipe = make_pipeline()
    call = {"guidance_scale": 1.0, "num_inference_steps": 4}
    with Counted(pipe.transformer) as whole, accelerate(pipe, temporal=TaylorSeer(1)) as handle:
        pipe(**drawn([0]) | call)
    assert handle.report is not None and whole.flops == handle.report.flops > 0
    with peer(pipe, "taylorseer-lite:2", 4, {}), Counted(pipe.transformer) as cached:
        pipe(**drawn([0]) | call)
    assert 0.4 * whole.flops < cached.flops < whole.flops
    with pytest.raises(ValueError, match="peer 'x:1'; accepted: fbcache"):
        peer(pipe, "x:1", 4, {})


def test_a_peer_is_another_setting_and_leaves_the_digits_of_the_others() -> None:
    plain, cached = Setting("a", 6.0), Setting("a", 6.0, peer="fbcache:0.1")
    assert plain.made != cached.made and "peer" not in repr(plain)


def test_a_peers_options_are_read_and_unknown_ones_refused() -> None:
    assert parsed("magcache:0.24,skip=5,retention=0.1") == ("magcache", "0.24", {"skip": 5, "retention": 0.1})
    assert parsed("dbcache:0.2,mask=medium") == ("dbcache", "0.2", {"mask": "medium"})
    with pytest.raises(ValueError, match="'skip=1'; accepted: no options"):
        parsed("fbcache:0.1,skip=1")


def test_every_cache_of_the_study_is_one_that_is_known() -> None:
    for caches in (*PEERS.values(), *GENTLER.values()):
        for one in caches.values():
            if isinstance(one.spec, RALU):
                assert one.spec.noise == "paper" and one.reimplemented
            else:
                assert resolve_temporal(one.spec) if one.reimplemented else parsed(one.spec)


def test_halves_of_guidance_are_calls_of_their_own_in_flux_alone() -> None:
    asked = {model: arguments(model, Setting("a", 6.0)) for model in ("tiny-flux", "tiny-flux-dev", "tiny-sd3")}
    assert {model: called_apart(call) for model, call in asked.items()} == {
        "tiny-flux": True, "tiny-flux-dev": False, "tiny-sd3": False,
    }  # fmt: skip
