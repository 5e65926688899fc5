"""Small random pipelines of many classes of diffusers, each with a scheduler it is used with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from torch import Tensor, nn

from ralu_cache import api

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EULER = diffusers.FlowMatchEulerDiscreteScheduler


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def words(width: int, count: int = 6, negative: bool = True, mask: bool = True) -> dict[str, Any]:
    """Embeddings in place of a prompt."""
    names = ["prompt", "negative_prompt"][: 1 + negative]
    given: dict[str, Any] = {f"{name}_embeds": drawn(1, count, width, seed=seed) for seed, name in enumerate(names)}
    if mask:
        given |= {f"{name}_attention_mask": torch.ones(1, count, dtype=torch.bool) for name in names}
    return given


def unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip


def autoencoder(channels: int = 4) -> nn.Module:
    return diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 2, layers_per_block=1,
        up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=[4, 8], norm_num_groups=4, latent_channels=channels,
    )  # fmt: skip


def dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=4, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, attention_bias=True, num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
    )  # fmt: skip


def pixart() -> nn.Module:
    return diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=16,
        in_channels=4, cross_attention_dim=16, out_channels=8, attention_bias=True, norm_elementwise_affine=False,
        num_embeds_ada_norm=1000, norm_type="ada_norm_single",
    )  # fmt: skip


def cogvideo() -> nn.Module:
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2, num_layers=1,
        text_embed_dim=16, sample_width=2, sample_height=2, sample_frames=9, patch_size=2, max_text_seq_length=6,
    )  # fmt: skip


def mochi() -> nn.Module:
    model = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=1, pooled_projection_dim=16,
        in_channels=12, text_embed_dim=16, time_embed_dim=4, max_sequence_length=6,
    )  # fmt: skip
    nn.init.zeros_(model.pos_frequencies)
    return model


def aura() -> nn.Module:
    return diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=16, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip


def sana() -> nn.Module:
    return diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=8,
    )  # fmt: skip


def cogview() -> nn.Module:
    return diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=4, out_channels=4,
        text_embed_dim=16, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip


def bria() -> nn.Module:
    return diffusers.BriaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=[0, 4, 4],
    )  # fmt: skip


def audio() -> nn.Module:
    return diffusers.StableAudioDiTModel(
        sample_size=4, in_channels=3, num_layers=1, attention_head_dim=4, num_key_value_attention_heads=2,
        out_channels=3, cross_attention_dim=4, time_proj_dim=8, global_states_input_dim=8, cross_attention_input_dim=4,
    )  # fmt: skip


def audio_autoencoder() -> nn.Module:
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=3,
        audio_channels=2, channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip


def projection() -> nn.Module:
    return StableAudioProjectionModel(text_encoder_dim=4, conditioning_dim=4, min_value=0, max_value=32)


@pytest.fixture(autouse=True)
def no_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever families there are, nothing is known of these pipelines; a test module takes it by naming it."""
    monkeypatch.setattr(api, "matching_adapter", lambda pipe: None)


@dataclass(frozen=True)
class Sample:
    """A pipeline of one class. make: its denoiser; call: the arguments; parts: the other components."""

    cls: str
    make: Callable[[], nn.Module]
    scheduler: Callable[[], Any]
    call: dict[str, Any]
    parts: dict[str, Any] = field(default_factory=dict)
    denoiser: str = "transformer"

    def __str__(self) -> str:
        return f"{self.cls.removesuffix('Pipeline')}-{type(self.scheduler()).__name__.removesuffix('Scheduler')}"

    def pipeline(self) -> Any:
        torch.manual_seed(0)
        parts = {name: part() if callable(part) else part for name, part in self.parts.items()}
        pipe = getattr(diffusers, self.cls)(
            scheduler=self.scheduler(), **{self.denoiser: self.make().eval()}, **parts
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def run(self, pipe: Any, steps: int = 9, **others: Any) -> Tensor:
        """The latents of a call."""
        generator = torch.Generator().manual_seed(0)
        given = {"num_inference_steps": steps, "generator": generator, "output_type": "latent"}
        found = pipe(**{**self.call, **given, **others})[0]
        return torch.as_tensor(found)


NONE = {"vae": None, "text_encoder": None, "tokenizer": None}
STABLE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
PIXELS = {"height": 64, "width": 64}
SAMPLES = [
    Sample("DiTPipeline", dit, diffusers.DDIMScheduler, {"class_labels": [1]}, {"vae": autoencoder}),
    *(
        Sample(
            "StableDiffusionPipeline", unet, scheduler, words(8, mask=False) | {"height": 16, "width": 16},
            {**NONE, "vae": autoencoder, **STABLE}, "unet",
        )
        for scheduler in (
            lambda: diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **SCALED),
            lambda: diffusers.EulerDiscreteScheduler(steps_offset=1, prediction_type="v_prediction", **SCALED),
        )
    ),
    Sample(
        "PixArtSigmaPipeline", pixart, diffusers.DPMSolverMultistepScheduler,
        words(16) | PIXELS | {"use_resolution_binning": False, "negative_prompt": None}, NONE,
    ),
    *(
        Sample("CogVideoXPipeline", cogvideo, scheduler, words(16, mask=False) | {
            "height": 16, "width": 16, "num_frames": 5}, NONE)
        for scheduler in (
            lambda: diffusers.CogVideoXDDIMScheduler(
                prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
            lambda: diffusers.CogVideoXDPMScheduler(
                prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        )
    ),
    Sample(
        "MochiPipeline", mochi, lambda: EULER(invert_sigmas=True),
        words(16) | {"height": 16, "width": 16, "num_frames": 7}, NONE,
    ),
    Sample("AuraFlowPipeline", aura, EULER, words(16) | PIXELS, NONE),
    Sample(
        "SanaPipeline", sana, lambda: diffusers.DPMSolverMultistepScheduler(**FLOW),
        words(8) | PIXELS | {"use_resolution_binning": False, "negative_prompt": None}, NONE,
    ),
    Sample("CogView4Pipeline", cogview, EULER, words(16, count=16, mask=False) | PIXELS, NONE),
    Sample("BriaPipeline", bria, EULER, words(16, mask=False) | PIXELS, {**NONE, "vae": autoencoder}),
    Sample(
        "StableDiffusionImg2ImgPipeline", unet, lambda: diffusers.UniPCMultistepScheduler(steps_offset=1, **SCALED),
        words(8, mask=False) | {"image": drawn(1, 4, 8, 8), "strength": 0.7},
        {**NONE, "vae": autoencoder, **STABLE}, "unet",
    ),
    Sample(
        "StableAudioPipeline", audio, lambda: diffusers.EDMDPMSolverMultistepScheduler(
            prediction_type="v_prediction", sigma_data=1.0, sigma_min=0.3, sigma_max=100.0),
        words(4, mask=False) | {"audio_end_in_s": 1.0},
        {**NONE, "vae": audio_autoencoder, "projection_model": projection},
    ),
]  # fmt: skip
