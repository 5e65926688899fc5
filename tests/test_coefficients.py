"""Coefficients by themselves: the profile beside the model, else what was published for the family, else identity."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import ralu_cache.demo
from ralu_cache import RALU, TeaCache, accelerate
from ralu_cache.cli import main
from ralu_cache.temporal.coefficients import calibrated, find_profile, model_folder, profile_name
from ralu_cache.temporal.profile import Profile, StageFit, read_profile
from ralu_cache.tune.calibration.fit import calibrate
from tests.pipelines import make_pipeline, make_sd3_pipeline, make_sd3_transformer, pictures

TINY = Path(ralu_cache.demo.__file__).parent / "tiny_flux"
CALL = {"true_cfg_scale": 1.0}


def constant(value: float, plan: str = "none") -> Profile:
    """Every change counts as `value`."""
    return Profile("m", plan, 8, (StageFit((value,), (0.0, 1.0), 0.0, None, 9),))


@pytest.fixture
def folder(pipe: Any, tmp_path: Path) -> Path:
    """A pipeline's folder, of which the transformer is real."""
    pipe.transformer.save_pretrained(tmp_path / "model" / "transformer")
    (tmp_path / "model" / "model_index.json").write_text("{}")
    return tmp_path / "model"


def loaded(folder: Path, subfolder: str | None = "transformer") -> Any:
    pipe = make_pipeline()
    source = folder / "transformer" if subfolder is None else folder
    loaded = diffusers.FluxTransformer2DModel.from_pretrained(source, subfolder=subfolder)
    pipe.register_modules(transformer=loaded.eval())
    return pipe


def decisions(pipe: Any, temporal: Any, spatial: Any = None) -> tuple[Any, list[Any], torch.Tensor]:
    with accelerate(pipe, spatial, temporal) as handle:
        images = pipe(**pictures([0, 1], **CALL)).images
    assert handle.report is not None
    return handle.report, [step.branches[0].reused for step in handle.report.steps], images


@pytest.mark.parametrize("subfolder", ["transformer", None])
def test_the_profile_beside_decides_bit_for_bit_as_if_it_were_named(folder: Path, subfolder: str | None) -> None:
    """Whether the model is loaded as a part of its folder, or from its own folder inside."""
    pipe = loaded(folder, subfolder)
    profile = calibrate(pipe, [pictures([5], **CALL)])
    profile.save(path := folder / profile_name(profile.plan))
    assert path.name == "teacache.json"
    report, found, images = decisions(pipe, "teacache:0.3")
    named, wanted, expected = decisions(pipe, TeaCache(0.3, str(path)))
    assert found == wanted and torch.equal(images, expected) and any(map(any, found))
    assert report.temporal == f"teacache:0.3 (coefficients {path})" and not report.notices
    assert str(path) in named.temporal
    published, others, _ = decisions(pipe, TeaCache(0.3, "flux"))
    assert others != found and "coefficients='flux'" in published.temporal


def test_a_plan_has_a_profile_of_its_own_and_the_plain_one_does_not_serve_it(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = loaded(folder)
    constant(0.0).save(folder / "teacache.json")
    constant(0.0, "ralu-8x").save(folder / "teacache-ralu-8x.json")
    report, reused, _ = decisions(pipe, TeaCache(0.3), "ralu-8x")
    assert any(map(any, reused)) and "teacache-ralu-8x.json" in report.temporal
    assert not any("coefficients" in notice for notice in report.notices)
    assert decisions(pipe, TeaCache(0.3), "ralu")[1] == reused, "the family's default is that plan"
    for plan in ("ralu-5x", RALU(steps=(3, 3, 3))):
        with caplog.at_level(logging.WARNING, logger="ralu_cache"), accelerate(pipe, plan, "teacache:0.1") as handle:
            for _ in range(2):
                pipe(**pictures([0], **CALL))
        assert handle.report is not None and sum(stage.reused for stage in handle.report.stages) == 0
        assert handle.report.temporal == "teacache:0.1 (coefficients flux)", "with these 0.1 never reuses"
        assert any("teacache.json were fitted without stages" in notice for notice in handle.report.notices)
        assert sum("were fitted without stages" in record.message for record in caplog.records) == 1
        caplog.clear()


def test_a_profile_of_another_plan_alone_is_not_used(folder: Path) -> None:
    constant(0.0, "ralu-4x").save(folder / "teacache-ralu-4x.json")
    report, _, _ = decisions(loaded(folder), "teacache:0.3")
    assert report.temporal == "teacache:0.3 (coefficients flux)"


def test_without_a_profile_those_of_the_family_serve(pipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    report, found, images = decisions(pipe, "teacache")
    _, wanted, expected = decisions(pipe, TeaCache(coefficients="flux"))
    assert found == wanted and torch.equal(images, expected)
    assert report.temporal == "teacache (coefficients flux)" and not report.notices
    sd3 = make_sd3_pipeline()
    with caplog.at_level(logging.WARNING, logger="ralu_cache"), accelerate(sd3, temporal="teacache:0.1") as handle:
        sd3(**pictures([0], guidance_scale=1.0))
        first = handle.report
        sd3(**pictures([0], guidance_scale=1.0))
    with accelerate(sd3, temporal=TeaCache(0.1, "identity")) as named:
        sd3(**pictures([0], guidance_scale=1.0))
    assert first is not None and named.report is not None
    assert [step.branches[0].reused for step in first.steps] == [step.branches[0].reused for step in named.report.steps]
    assert first.temporal == "teacache:0.1 (coefficients identity)"
    assert "no TeaCache coefficients were published for sd3" in first.notices[0]
    assert sum("were published for sd3" in record.message for record in caplog.records) == 1
    assert "published for sd3" in str(handle.report)


def test_what_is_given_wins(folder: Path) -> None:
    constant(0.0).save(folder / "teacache.json")
    pipe = loaded(folder)
    for given in (TeaCache(0.3, "flux"), TeaCache(0.3, (1.0, 0.0)), None):
        found = calibrated(given, "name", pipe.transformer, "flux", "none")
        assert found.policy is given and found.name == "name" and found.notice is None
    report, _, _ = decisions(pipe, "teacache:0.3,coefficients=identity")
    assert report.temporal == "teacache:0.3,coefficients=identity"


def test_a_broken_profile_is_refused_by_path_and_leaves_the_pipeline_as_it_was(folder: Path) -> None:
    (folder / "teacache.json").write_text("{}")
    pipe = loaded(folder)
    handle = accelerate(pipe, temporal="seacache")
    with pytest.raises(ValueError, match=r"model.teacache\.json is no TeaCache profile"):
        accelerate(pipe, temporal="teacache")
    assert handle.enabled and pipe(**pictures([0], **CALL)).images.isfinite().all()


def test_a_plan_of_ones_own_is_no_name_of_a_file(tmp_path: Path) -> None:
    """Its repr is longer than file systems take."""
    transformer = make_sd3_transformer()
    transformer.register_to_config(_name_or_path=str(tmp_path))
    plan = RALU(steps=(8, 2, 3), ends=(0.4123, 0.6789, 1.0), shifts=(3.333, 2.222, 1.111), ratio=0.1 + 0.2)
    assert find_profile(transformer, repr(plan)) is None


def test_a_model_named_by_its_id_is_looked_up_in_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    constant(0.0).save(repository / "snapshots" / "abc" / "teacache.json")
    transformer = make_sd3_transformer()
    transformer.register_to_config(_name_or_path="someone/model")
    assert find_profile(transformer, "none") == repository / "snapshots" / "abc" / "teacache.json"
    assert find_profile(transformer, "ralu-4x") is None
    for gone in ("someone/other", "/no/such/folder", "../a/b/c"):
        transformer.register_to_config(_name_or_path=gone)
        assert find_profile(transformer, "none") is None
        with pytest.raises(ValueError, match="name a file with --out"):
            model_folder(transformer)


def test_the_command_puts_it_beside_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a copy of the embedded model, as any checkpoint's folder."""
    shutil.copytree(TINY, tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a red circle on a white background\n")
    arguments = ["calibrate", "--model", str(tmp_path / "tiny"), "--prompts", str(tmp_path / "prompts.txt"), "--beside"]
    arguments += ["--height", "64", "--width", "64", "--max-sequence-length", "16", "--true-cfg-scale", "1"]
    assert main([*arguments, "--steps", "4"]) == 0
    assert main([*arguments, "--spatial", "ralu-7x"]) == 0
    printed = capsys.readouterr().out
    for name, plan, stages in (("teacache.json", "none", 1), ("teacache-ralu-7x.json", "ralu-7x", 3)):
        path = tmp_path / "tiny" / name
        profile = read_profile(path)
        assert profile.plan == plan and len(profile.stages) == stages and f"{path} is used by" in printed
    pipe = diffusers.FluxPipeline.from_pretrained(tmp_path / "tiny")
    assert find_profile(pipe.transformer, "ralu-7x") == tmp_path / "tiny" / "teacache-ralu-7x.json"
    assert model_folder(pipe.transformer) == tmp_path / "tiny"
    assert json.loads((tmp_path / "tiny" / "model_index.json").read_text())["_class_name"] == "FluxPipeline"
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path / "p.json")])
