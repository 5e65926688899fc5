"""Every refusal names what was given and what is accepted."""

import logging
import math
from typing import Any

import diffusers
import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from ralu_cache import RALU, Scorer, accelerate, register_spatial
from tests.pipelines import call_arguments, make_pipeline, make_sd3_transformer
from tests.pipelines_cogview4 import cogview4_pictures, make_cogview4_pipeline

PLAN = RALU(steps=(2, 2, 2))


def test_unknown_methods(pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown spatial method 'ralu-9x'; accepted: None, ralu, ralu-4x, ralu-5x"):
        accelerate(pipe, spatial="ralu-9x")
    with pytest.raises(ValueError, match="unknown temporal policy 'teacahce'; accepted: None, forecast, teacache"):
        accelerate(pipe, spatial="ralu", temporal="teacahce")
    with pytest.raises(TypeError, match=r"spatial must be None, a name or a RALU\(...\), got int"):
        accelerate(pipe, spatial=4)
    with pytest.raises(ValueError, match="unknown RALU preset 'ralu-6x'; accepted: ralu-4x"):
        RALU.preset("ralu-6x")
    with pytest.raises(ValueError, match="registered already"):
        register_spatial("ralu-4x", RALU)


def test_wrong_pipelines(pipe: Any) -> None:
    unet = diffusers.UNet2DModel(sample_size=8, block_out_channels=(4, 4), norm_num_groups=1, layers_per_block=1,
                                 down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    with pytest.raises(TypeError, match=r"DDPMPipeline \(no transformer\) is not supported.*FluxPipeline"):
        accelerate(diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()), spatial="ralu")
    with pytest.raises(TypeError, match=r"object \(no transformer\) is not supported"):
        accelerate(object(), spatial="ralu")
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with pytest.raises(TypeError, match=r"OptimizedModule.*compile_repeated_blocks"):
        accelerate(pipe, spatial="ralu")


def test_wrong_schedulers(pipe: Any) -> None:
    pipe.scheduler = EulerDiscreteScheduler()
    with pytest.raises(TypeError, match="EulerDiscreteScheduler is not supported by this setting, which needs Flow"):
        accelerate(pipe, spatial="ralu")
    for option in ({"stochastic_sampling": True}, {"use_karras_sigmas": True}, {"invert_sigmas": True}):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(**option)
        with pytest.raises(ValueError, match=f"scheduler option {next(iter(option))}=True is not supported"):
            accelerate(pipe, spatial="ralu")


def test_sizes_that_do_not_divide(pipe: Any) -> None:
    accelerate(pipe, spatial=PLAN)
    with pytest.raises(ValueError, match="multiples of 8 for spatial stages, got 32x100; nearest: 32x104"):
        pipe(**call_arguments(width=100))
    assert pipe(**call_arguments(width=104)).images.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": (2, 0, 2)}, "0"),
        ({"steps": (2, -1, 2)}, "-1"),
        ({"steps": (2, 2.5, 2)}, "2.5"),
        ({"steps": (2, 2)}, r"one value for each stage.*got steps=\(2, 2\), ends=\(0.1, 0.2, 1.0\)"),
        ({"steps": (2, 2, 2), "split": (1, 1, 1)}, "steps or split, not both"),
        ({"split": (1, 1)}, r"split=\(1, 1\)"),
        ({"ends": (0.3, math.nan, 1.0)}, "nan"),
        ({"ends": (0.5, 0.4, 1.0)}, "0.4"),
        ({"ends": (0.3, 0.45, 0.9)}, "0.9"),
        ({"ends": (-0.3, 0.45, 1.0)}, "-0.3"),
        ({"ratio": math.nan}, "nan"),
        ({"ratio": -0.1}, "-0.1"),
        ({"ratio": 1.5}, "1.5"),
        ({"ratio": (0.2, 0.3)}, r"1 growing share\(s\)"),
        ({"shifts": "ntdm"}, "shifts must be one of 'model', 'nt-dm', got 'ntdm'"),
        ({"shifts": (1.0, 2.0), "z": 3.0}, r"shifts=\(1.0, 2.0\)"),
        ({"shifts": (1.0, math.inf, 2.0), "z": 3.0}, "inf"),
        ({"shifts": (1.0, 2.0, 2.0), "z": math.nan}, "nan"),
        ({"shifts": (1.0, 2.0, 2.0), "z": 0.5}, "0.5"),
        ({"shifts": (1.0, 2.0, 2.0), "z": 1.5, "noise": "paper"}, "z >= 2, got z=1.5"),
        ({"shift": -1.0}, "-1.0"),
        ({"shift": math.nan}, "nan"),
        ({"shift": "auto"}, "shift must be a positive number or 'model', got 'auto'"),
        ({"noise": "fresh"}, "noise must be one of 'rewind', 'paper', got 'fresh'"),
        ({"start": "zero"}, "start must be one of 'pooled', 'subsampled', got 'zero'"),
        ({"lift": "lanczos"}, "lift must be one of 'nearest', 'bicubic', 'pixel', got 'lanczos'"),
        ({"lift": "bicubic", "noise": "paper"}, "lift='bicubic' needs noise='rewind'"),
        ({"positions": "pixel"}, "positions must be one of 'own', 'fine', got 'pixel'"),
        ({"anchor": "middle"}, "anchor must be one of 'center', 'corner', got 'middle'"),
        ({"regions": "cany"}, "cany"),
    ],
)
def test_ill_matched_plans(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RALU(**options)


def test_more_stages_than_steps(pipe: Any) -> None:
    accelerate(pipe, spatial=RALU(split=(1, 1, 1)))
    with pytest.raises(ValueError, match="2"):
        pipe(**call_arguments(num_inference_steps=2))


def test_overridden_steps_are_told_once(pipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    handle = accelerate(pipe, spatial=PLAN)
    with caplog.at_level(logging.WARNING, logger="ralu_cache"):
        pipe(**call_arguments())
        pipe(**call_arguments())
    message = "num_inference_steps=8 is overridden: this RALU plan takes 6 steps (2, 2, 2)"
    assert [record.getMessage()[: len(message)] for record in caplog.records] == [message]
    assert handle.report.notices[0].startswith(message)
    caplog.clear()
    pipe(**call_arguments(num_inference_steps=6))
    assert not caplog.records and not handle.report.notices


def test_custom_sigmas_are_refused_by_plans_with_shifts_of_their_own(pipe: Any) -> None:
    handle = accelerate(pipe, spatial=RALU.paper())
    with pytest.raises(ValueError, match=r"custom sigmas= or timesteps= are not supported.*shifts='model'"):
        pipe(**call_arguments(sigmas=[1.0, 0.7, 0.2], num_inference_steps=3))
    assert handle.report is None, "nothing ran"


def test_a_replaced_transformer_is_accelerated_and_a_strange_one_refused(pipe: Any) -> None:
    handle = accelerate(pipe, spatial=PLAN)
    expected, before = pipe(**call_arguments()).images, pipe.transformer
    pipe.transformer = make_pipeline().transformer
    assert torch.equal(pipe(**call_arguments()).images, expected)
    assert len(before._forward_pre_hooks) == 0 and handle.report.stages[0].kind == "coarse"
    pipe.transformer = make_sd3_transformer()
    with pytest.raises(TypeError, match=r"SD3Transformer2DModel now.*call accelerate\(pipe, ...\) again"):
        pipe(**call_arguments())


def test_a_replaced_scheduler_is_taken_on(pipe: Any) -> None:
    handle = accelerate(pipe, spatial=PLAN)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, base_shift=0.9)
    assert pipe(**call_arguments()).images.isfinite().all() and handle.report.completed
    assert pipe.scheduler.config.base_shift == 0.9
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    with pytest.raises(TypeError, match="scheduler FlowMatchHeunDiscreteScheduler is not supported"):
        pipe(**call_arguments())


def test_whole_model_compilation_in_place_is_refused(pipe: Any) -> None:
    pipe.transformer.compile(backend="eager")
    with pytest.raises(RuntimeError, match="compile_repeated_blocks"):
        accelerate(pipe, spatial=PLAN)
    pipe = make_pipeline()
    accelerate(pipe, spatial=PLAN)
    pipe.transformer.compile(backend="eager")
    with pytest.raises(RuntimeError, match="compile_repeated_blocks"):
        pipe(**call_arguments())


def test_the_way_to_compile_is_one_that_the_model_has() -> None:
    pipe = make_cogview4_pipeline()  # whose class names no blocks for `compile_repeated_blocks`
    pipe.transformer.compile(backend="eager")
    with pytest.raises(RuntimeError, match=r"use block.compile\(\) for each of its blocks instead"):
        accelerate(pipe, temporal="taylorseer:2")
        pipe(**cogview4_pictures((0,)))


def test_per_token_timesteps_are_refused(pipe: Any) -> None:
    with accelerate(pipe, spatial=PLAN).call(), pytest.raises(ValueError, match="per_token_timesteps"):
        pipe.scheduler.set_timesteps(6, mu=0.5)
        pipe.scheduler.step(torch.zeros(1, 4, 16), 1.0, torch.zeros(1, 4, 16), per_token_timesteps=torch.ones(1, 4))


def test_a_scorer_that_needs_the_autoencoder_says_so(pipe: Any) -> None:
    pipe.vae_scale_factor = 2
    pipe.register_modules(vae=None)
    accelerate(pipe, spatial=RALU(steps=(2, 2, 2), regions="sobel"))
    with pytest.raises(ValueError, match="'sobel' needs a decoder"):
        pipe(**call_arguments())


def test_a_scorer_of_the_users_own(pipe: Any) -> None:
    def left(evidence: Any) -> torch.Tensor:
        b, _, h, w = evidence.x0.shape
        rows, columns = h // (2 * evidence.patch), w // (2 * evidence.patch)
        return -torch.arange(columns).float().expand(b, rows, columns)

    handle = accelerate(pipe, spatial=RALU(steps=(2, 2, 2), ratio=0.5, regions=Scorer("left", left, frozenset())))
    pipe(**call_arguments())
    mask = handle.report.regions[0]
    assert mask[:, :, : mask.shape[2] // 2].all() and not mask[:, :, mask.shape[2] // 2 :].any()
