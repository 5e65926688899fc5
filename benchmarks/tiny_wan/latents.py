"""Training data: chunks of clips, rendered, halved, encoded frame by frame, with their encoded prompts."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5TokenizerFast, UMT5EncoderModel

from benchmarks.tiny_flux.latents import chunk_files
from benchmarks.tiny_flux.render import halve
from benchmarks.tiny_wan.autoencoder import frame_latents, pair_frames
from benchmarks.tiny_wan.parts import encode_prompts
from benchmarks.tiny_wan.scenes import Clip, sample_clip
from ralu_cache.plane.canvas import patchify

CHUNK_CLIPS = 250
PATCH = 2
Text = tuple[T5TokenizerFast, UMT5EncoderModel]


def encode_clips(clips: list[Clip], flux: AutoencoderKL, text: Text) -> dict[str, Tensor]:
    """Tokens `half` (n, 112, 32) of the clips at half size and `full` (n, 448, 32), `words` (n, 16, 96)."""
    videos = [clip.frames() for clip in clips]
    halved = [np.stack([halve(frame) for frame in video]) for video in videos]
    tokens = {}
    for name, size in (("half", halved), ("full", videos)):
        latents = pair_frames(frame_latents(flux, np.stack(size)))
        tokens[name] = patchify(latents.flatten(2, 3), PATCH)
    return tokens | {"words": encode_prompts(text, [clip.prompt for clip in clips])}


def write_chunks(clips: int, seed: int, flux: Path, text: Text, folder: Path) -> None:
    """Write the chunks that do not exist yet, as float16 safetensors; each depends on the seed and its number only."""
    vae = AutoencoderKL.from_pretrained(flux / "vae", dtype=torch.float32)
    for number, start in enumerate(range(0, clips, CHUNK_CLIPS)):
        path = folder / f"chunk_{number:04d}.safetensors"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, number])
        drawn = [sample_clip(rng) for _ in range(min(CHUNK_CLIPS, clips - start))]
        tensors = {name: value.half().contiguous() for name, value in encode_clips(drawn, vae, text).items()}
        unfinished = path.with_suffix(".tmp")
        save_file(tensors, unfinished, metadata={"prompts": json.dumps([clip.prompt for clip in drawn])})
        unfinished.rename(path)
        print(f"latents: {start + len(drawn)} of {clips} clips", flush=True)


@dataclass(frozen=True)
class ClipData:
    """All chunks in memory, float16: tokens `half` (n, 112, 32) and `full` (n, 448, 32), `words`, `empty` (16, 96)."""

    half: Tensor
    full: Tensor
    words: Tensor
    empty: Tensor

    @classmethod
    def load(cls, folder: Path, text: Text) -> "ClipData":
        """Read every chunk in `folder`."""
        pieces: dict[str, list[Tensor]] = {"half": [], "full": [], "words": []}
        for path in chunk_files(folder):
            with safe_open(path, "pt") as chunk:
                for name, piece in pieces.items():
                    piece.append(chunk.get_tensor(name))
        return cls(**{name: torch.cat(piece) for name, piece in pieces.items()}, empty=encode_prompts(text, [""])[0])
