"""What introspection can't tell of single components and pipelines: the table of the odd ones.

`COMPONENTS` gives constructor arguments by class, `PIPELINES` by pipeline (a pattern of names) and component, where
"class" names another class; a value that is no dictionary is the component itself.
"""

from __future__ import annotations

from typing import Any

from benchmarks.coverage.shrink import CHANNELS, WIDTH

ABSTRACT = {
    "PreTrainedModel": "Qwen3Model", "Gemma2PreTrainedModel": "Gemma2Model", "GemmaPreTrainedModel": "GemmaModel",
    "SchedulerMixin": "FlowMatchEulerDiscreteScheduler", "T5GemmaEncoderModel": "T5EncoderModel",
    "T5GemmaEncoder": "T5EncoderModel", "T5Gemma2Encoder": "T5EncoderModel",
}  # fmt: skip
"""Names in signatures that no object can be made of, or none that is tiny, and what takes their place."""

LEFT_OUT = frozenset({
    "safety_checker", "watermarker", "prompt_enhancer", "prompt_enhancer_head", "duration_head", "audio_tokenizer",
    "audio_token_detokenizer", "sound_tokenizer", "pe", "pe_tokenizer", "latent_upscaler",
})  # fmt: skip
"""Components that pipelines do without."""

WANTED: frozenset[str] = frozenset(
    {"transformer", "scheduler", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"}
)
"""Components that are made although they have a default."""


class Permissive:
    """A safety checker that finds nothing; Cosmos refuses to run without one."""

    def to(self, *_: Any) -> Permissive:
        return self

    def check_text_safety(self, _: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


LEVELS = 4
GIVEN_SIZE = {"sample_height": 8, "sample_width": 8}  # latent pixels
KL = {
    "down_block_types": ("DownEncoderBlock2D",) * LEVELS, "up_block_types": ("UpDecoderBlock2D",) * LEVELS,
    "block_out_channels": (CHANNELS,) * LEVELS, "shift_factor": 0.1,
}  # fmt: skip
SPLIT_2D = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "block_out_channels": (CHANNELS, CHANNELS),
}  # fmt: skip

COMPONENTS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": KL,
    "UNet2DConditionModel": {**SPLIT_2D, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "sample_size": 8},
    "ControlNetModel": {**SPLIT_2D, "conditioning_embedding_out_channels": (16, 16, 16, 16)},
    "ControlNetUnionModel": {**SPLIT_2D, "conditioning_embedding_out_channels": (16, 16, 16, 16)},
    "UNetMotionModel": {
        "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"), "block_out_channels": (CHANNELS, CHANNELS),
        "up_block_types": ("CrossAttnUpBlockMotion", "UpBlockMotion"),
    },
    "UNet3DConditionModel": {
        "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"), "block_out_channels": (CHANNELS, CHANNELS),
        "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D"), "attention_head_dim": 8, "sample_size": 8,
    },
    "UNetSpatioTemporalConditionModel": {
        "down_block_types": ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
        "up_block_types": ("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"), "num_attention_heads": 2,
        "block_out_channels": (CHANNELS, CHANNELS), "addition_time_embed_dim": 8, "sample_size": 8,
        "projection_class_embeddings_input_dim": 24,
    },
    "UNet2DModel": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (CHANNELS, CHANNELS), "sample_size": 32,
    },
    "MotionAdapter": {"block_out_channels": (CHANNELS, CHANNELS), "use_motion_mid_block": False},
    "AllegroTransformer3DModel": {
        **GIVEN_SIZE, "attention_head_dim": 24, "sample_frames": 3, "cross_attention_dim": 48,
    },
    "CogVideoXTransformer3DModel": {**GIVEN_SIZE, "max_text_seq_length": 16},
    "ConsisIDTransformer3DModel": {**GIVEN_SIZE, "max_text_seq_length": 16, "in_channels": 32},
    "AuraFlowTransformer2DModel": {"pos_embed_max_size": 1024, "sample_size": 8},
    "EasyAnimateTransformer3DModel": {**GIVEN_SIZE, "patch_size": 2, "in_channels": 16, "out_channels": 16},
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "caption_channels": (WIDTH, WIDTH),
        "llama_layers": (0, 1, 0, 1), "axes_dims_rope": (4, 6, 6), "text_emb_dim": 2 * WIDTH,
    },
    "HunyuanDiT2DModel": {"patch_size": 2, "in_channels": 4, "sample_size": 8},
    "HunyuanDiT2DControlNetModel": {"patch_size": 2, "in_channels": 4, "sample_size": 8},
    "LatteTransformer3DModel": {
        "patch_size": 2, "in_channels": 4, "out_channels": 8, "sample_size": 8, "caption_channels": WIDTH,
        "cross_attention_dim": WIDTH, "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False, "video_length": 9,
    },
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3, "out_channels": 3, "latent_channels": 64, "block_out_channels": (128,) * 6,
        "spatial_compression_ratio": 32, "sample_size": 64,
    },
    "AmusedScheduler": {"mask_token_id": 5},
    "CosmosTransformer3DModel": {"concat_padding_mask": False},
    "DiTTransformer2DModel": {"sample_size": 8, "out_channels": 8},
    "LTX2TextConnectors": {
        "text_proj_in_factor": 3, "audio_connector_num_learnable_registers": 8,
        "video_connector_num_learnable_registers": 8,
    },
    "LuminaNextDiT2DModel": {"num_kv_heads": 2, "sample_size": 8},
    "OmniGenTransformer2DModel": {"pad_token_id": 1},
    "PixArtTransformer2DModel": {"sample_size": 64, "interpolation_scale": 1, "use_additional_conditions": False},
    "PRXTransformer2DModel": {"axes_dim": (8, 8)},
    "WanVACETransformer3DModel": {"vace_layers": [0, 1]},
    "ZImageControlNetModel": {
        "control_layers_places": [0, 1], "control_refiner_layers_places": [0], "control_in_dim": 16,
        "add_control_noise_refiner": "control_noise_refiner",
    },
    "SD3ControlNetModel": {"joint_attention_dim": 2 * WIDTH, "pooled_projection_dim": 2 * WIDTH},
    "StableAudioProjectionModel": {"min_value": 0, "max_value": 100},
    "HeliosScheduler": {"scheduler_type": "unipc", "stages": 1},
    "Krea2Transformer2DModel": {"num_text_layers": 2},
    "Kandinsky6SRTransformer3DModel": {},
}  # fmt: skip

DETERMINISTIC = {"scheduler": {"class": "DDIMScheduler"}}  # in place of DDPM, which draws noise at every step
DEEP = {"vae": {"latent_channels": 16}}  # latents of 16 channels

XL = {
    "cross_attention_dim": 2 * WIDTH, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
}  # fmt: skip
XL_PARTS = {"unet": XL, "controlnet": XL}

KANDINSKY = {
    "text_encoder": {
        "transformerDimSize": WIDTH, "imageDimSize": WIDTH, "hidden_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": WIDTH, "vocab_size": 1000,
    },
    "unet": {"out_channels": 8}, "movq": {"latent_channels": 4}, **DETERMINISTIC,
}  # fmt: skip

PIPELINES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("StableDiffusionXL*", "AnimateDiffSDXL*", "LEditsPP*XL", "*ZeroSDXL*"), XL_PARTS),
    "Kolors*": {"unet": {**XL, "cross_attention_dim": WIDTH}},
    "*Inpaint*": {"unet": {"in_channels": 9}},
    "StableDiffusion*ControlNet*": {"unet": {"in_channels": 4}},
    "*InstructPix2Pix*": {"unet": {"in_channels": 8}},
    "StableDiffusionUpscale*": {"unet": {"in_channels": 7, "num_class_embeds": 1000}},
    "Marigold*": {"unet": {"in_channels": 8}},
    "LDMSuperResolution*": {"unet": {"in_channels": 6}},
    "Kandinsky[V23]*": {"movq": {"latent_channels": 4}},
    "StableDiffusionInpaintPipelineLegacy": {"unet": {"in_channels": 4}}, "PIA*": {"unet": {"in_channels": 9}},
    "StableDiffusionModelEditing*": {"scheduler": {"class": "DDIMScheduler"}},
    "LatentConsistency*": {"unet": {"time_cond_proj_dim": WIDTH}},
    "StableCascadePrior*": {"prior": {"clip_text_pooled_in_channels": WIDTH, "clip_text_in_channels": WIDTH,
                                      "clip_image_in_channels": WIDTH}},
    "KandinskyV22*": {"unet": {
        "encoder_hid_dim": WIDTH, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image",
        "out_channels": 8}},
    "Marigold[DN]*": {"prediction_type": "depth"},
    "IF*": {"unet": {
        "in_channels": 3, "out_channels": 6, "encoder_hid_dim": WIDTH, "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_norm": "group_norm",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "time_embedding_type": "positional"},
        "scheduler": {"class": "DPMSolverMultistepScheduler"}},
    "IF*SuperResolution*": {"unet": {"in_channels": 6, "class_embed_type": "timestep"}},
    "*Cosmos*": {"safety_checker": Permissive},
    "Cosmos2[TV]*": {"scheduler": {"use_karras_sigmas": True}},
    "Cosmos2VideoToWorld*": {"transformer": {"in_channels": 17}},
    "CosmosVideoToWorld*": {"transformer": {"in_channels": 17}},
    "Cosmos2_5*": {"transformer": {"in_channels": 17}},
    "Flux2*": {"transformer": {"joint_attention_dim": 3 * WIDTH}},
    **dict.fromkeys(
        ("Flux[!2]*", "Chroma*", "VisualCloze*", "LongCatImage*", "Ovis*", "ZImage*", "Lumina2*", "CogView*",
         "HiDream*", "GlmImage*", "Kandinsky5T2I*", "Kandinsky5I2I*"),
        DEEP,
    ),
    "Kandinsky5*I*Pipeline": {"transformer": {"in_visual_dim": 16, "out_visual_dim": 16}},
    "Kandinsky5I2*": {"transformer": {"visual_cond": True}},
    "Ideogram4*": {
        "text_encoder": {"class": "Qwen3VLModel", "text_config": {"num_hidden_layers": 36}},  # of which it reads 13
        **{key: {"llm_features_dim": 13 * WIDTH, "mrope_section": (4, 2, 2)}
           for key in ("transformer", "unconditional_transformer")},
    },
    "StableDiffusion3*": {
        **DEEP, "text_encoder_3": {"d_model": 2 * WIDTH},
        "transformer": {"joint_attention_dim": 2 * WIDTH, "pooled_projection_dim": 2 * WIDTH},
    },
    "BriaPipeline": {"vae": {"latent_channels": 4}, "transformer": {"in_channels": 16}},
    "FluxControl[!N]*": {"transformer": {"in_channels": 128, "out_channels": 64}},
    "FluxFill*": {"transformer": {"in_channels": 384, "out_channels": 64}},
    "CogVideoX[IF]*": {"transformer": {"in_channels": 32}},
    "CogView4Control*": {"transformer": {"in_channels": 32}},
    **{key: {"transformer": {"in_channels": 36}} for key in ("WanImage*", "SkyReelsV2Image*")},
    "LucyEdit*": {"transformer": {"in_channels": 32}},
    "HunyuanSkyreels*": {"transformer": {"in_channels": 32}},
    "HunyuanVideoImage*": {"transformer": {"image_condition_type": "token_replace"}},
    "HunyuanDiT*": DETERMINISTIC, "KandinskyV22*Pipeline": DETERMINISTIC,
    "PNDM*": {"scheduler": {"skip_prk_steps": True}},
    "MotifVideo*": {"guider": {"class": "ClassifierFreeGuidance"}},
    "SanaSprint*": {"scheduler": {"class": "SCMScheduler"}, "transformer": {"guidance_embeds": True}},
    "SanaVideo*": {"vae": {"class": "AutoencoderKLWan"}},
    "SanaImageToVideo*": {"vae": {"class": "AutoencoderKLWan"}},
    "Krea2*": {"text_encoder_select_layers": (0, 1)},
    "LTX2*": {"audio_vae": {"base_channels": 128}},
    "StableVideoDiffusion*": {
        "image_encoder": {"image_size": 224},
        "vae": {"down_block_types": ("DownEncoderBlock2D",) * LEVELS, "block_out_channels": (CHANNELS,) * LEVELS},
    },
    "StableDiffusionAdapter*": {
        "adapter": {"channels": [CHANNELS, CHANNELS]},
        "unet": {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                 "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
    },
    "StableDiffusionXLAdapter*": {
        "adapter": {"adapter_type": "full_adapter_xl", "channels": [CHANNELS] * 4, "downscale_factor": 16},
    },
    "StableDiffusionDepth2Img*": {
        "unet": {"in_channels": 5},
        "depth_estimator": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    },
    "StableDiffusion3ControlNetInpainting*": {"controlnet": {"extra_conditioning_channels": 1}},
    "StableDiffusionParadigms*": {"scheduler": {"class": "DDIMParallelScheduler"}},
    "StableDiffusionGLIGEN*": {"unet": {"attention_type": "gated"}},
    "StableAudioPipeline": {"transformer": {"global_states_input_dim": 2 * WIDTH}},
    "QwenImageControlNetInpaint*": {"controlnet": {"extra_condition_channels": 4}},
    **dict.fromkeys(("KandinskyPipeline", "KandinskyI*"), KANDINSKY),
    "HunyuanVideoFramepack*": {"transformer": {
        "has_image_proj": True, "image_proj_dim": WIDTH, "has_clean_x_embedder": True}},
    "NucleusMoE*": {"transformer": {"out_channels": 16}},
    "ZImageControlNetInpaint*": {"controlnet": {"control_in_dim": 33}},
    "ChronoEdit*": {"transformer": {"in_channels": 36, "image_dim": WIDTH}},
}  # fmt: skip

PIXELS = {"output_type": "pt"}

CALLS: dict[str, dict[str, Any]] = {
    "Sana*": {"use_resolution_binning": False},
    "PixArt*": {"use_resolution_binning": False},
    "PRX*": {"use_resolution_binning": False},
    "SanaSprint*": {"intermediate_timesteps": None},
    **dict.fromkeys(
        ("Kandinsky*Prior*", "ConsistencyModel*", "KandinskyV22Controlnet*", "KandinskyPipeline", "KandinskyI*"), PIXELS
    ),
    "StableDiffusionLDM3D*": {"output_type": "np"},
    **{key: {"control_mode": 0} for key in ("*ControlNetUnion*",)},
    "Marigold*": {"processing_resolution": 64, "output_type": "pt"},
    "*AttendAndExcite*": {"token_indices": [1], "attn_res": (4, 4)},
    "CycleDiffusion*": {"source_prompt": "a fox"},
    "TextToVideoZero*": {"t0": 3, "t1": 5},
    "AnyFlowFAR*": {"chunk_partition": [1, 2]},
    "LTX2ImageToVideo*": {"image_crf": 0},
    "Ideogram4*": {"guidance_schedule": None, "guidance_scale": 3.0, "max_sequence_length": 64},
    "*GLIGENPipeline": {
        "gligen_phrases": ["a fox"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]], "gligen_scheduled_sampling_beta": 1.0,
    },
    "VisualCloze*": {"task_prompt": "a fox", "content_prompt": "a fox"},
}
"""Arguments of calls that their names don't tell."""

NOT_VISUAL = (
    "*Audio*", "MusicLDM*", "ShapE*", "DanceDiffusion*", "AceStep*", "*Gemma*", "LLaDA*", "RFD4*", "*Prior*",
    "*Combined*",
)  # fmt: skip
"""Pipelines that make no pictures: sound, shapes, text, proteins, embeddings."""
