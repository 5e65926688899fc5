"""Training data: chunks of scenes, rendered at two sizes, encoded to latents, with their encoded prompts."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.tiny_flux.autoencoder import encode
from benchmarks.tiny_flux.render import halve, render
from benchmarks.tiny_flux.scenes import SHAPES, TWO_SHAPE_SHARE, Scene, sample_scene
from benchmarks.tiny_flux.text import TextModels
from benchmarks.tiny_flux.workers import Worker

CHUNK_SCENES = 250
FIELDS = ("half", "full", "words", "pooled")
HARD_SHAPES = {"star": 2.0, "circle": 1.5, "heart": 1.4}
"""How much oftener than the others these shapes are drawn when hard shapes are emphasised."""


@dataclass(frozen=True)
class DataConfig:
    """How many scenes, of which kind, from which seed."""

    scenes: int = 16000
    two_shape_share: float = TWO_SHAPE_SHARE
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.scenes < 1:
            raise ValueError(f"scenes is {self.scenes}; at least 1 is needed")
        if not 0 <= self.two_shape_share <= 1:
            raise ValueError(f"two_shape_share is {self.two_shape_share}; a share from 0 to 1 is needed")

    def chunks(self) -> list[int]:
        """The number of scenes in every chunk."""
        whole, rest = divmod(self.scenes, CHUNK_SCENES)
        return [CHUNK_SCENES] * whole + ([rest] if rest else [])

    def draw(self, chunk: int, count: int) -> list[Scene]:
        """The scenes of one chunk; they depend on the seed and the chunk's number only."""
        rng = np.random.default_rng([self.seed, chunk])
        return [sample_scene(rng, self.two_shape_share) for _ in range(count)]


def encode_scenes(scenes: list[Scene], vae: AutoencoderKL, text: TextModels) -> dict[str, Tensor]:
    """Packed, normalised latents `half` (n, 64, 16) and `full` (n, 256, 16), `words` (n, 16, 96), `pooled` (n, 64)."""
    images = [render(scene) for scene in scenes]
    words, pooled = text.encode([scene.prompt for scene in scenes])
    half, full = encode(vae, np.stack([halve(image) for image in images])), encode(vae, np.stack(images))
    return {"half": half, "full": full, "words": words, "pooled": pooled}


def write_chunks(worker: Worker, config: DataConfig, vae_folder: Path, text: TextModels, folder: Path) -> None:
    """Write this worker's share of the chunks that do not exist yet, as float16 safetensors."""
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32).eval().to(worker.device)
    sizes = config.chunks()
    for index in range(worker.rank, len(sizes), worker.world):
        path = folder / f"chunk_{index:04d}.safetensors"
        if path.exists():
            continue
        scenes = config.draw(index, sizes[index])
        tensors = {name: value.half().contiguous() for name, value in encode_scenes(scenes, vae, text).items()}
        unfinished = path.with_suffix(".tmp")
        save_file(tensors, unfinished, metadata={"prompts": json.dumps([scene.prompt for scene in scenes])})
        unfinished.rename(path)
        print(f"latents: chunk {index + 1} of {len(sizes)}", flush=True)


def chunk_files(folder: Path) -> list[Path]:
    """The chunks in a folder, in order. Raises FileNotFoundError if there are none."""
    paths = sorted(folder.glob("chunk_*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no chunk_*.safetensors in {folder}: run the latents stage first")
    return paths


def read_prompts(folder: Path) -> list[str]:
    """The prompts of all scenes, in the order of `LatentData`."""
    prompts: list[str] = []
    for path in chunk_files(folder):
        with safe_open(path, "pt") as chunk:
            prompts += json.loads(chunk.metadata()["prompts"])
    return prompts


@dataclass(frozen=True)
class LatentData:
    """All chunks in memory; `cumulative` (n,) turns a uniform number into a scene."""

    half: Tensor
    full: Tensor
    words: Tensor
    pooled: Tensor
    empty_words: Tensor
    empty_pooled: Tensor
    cumulative: np.ndarray

    @classmethod
    def load(cls, folder: Path, text: TextModels, hard_shapes: bool) -> "LatentData":
        """Read every chunk in `folder`; with `hard_shapes`, scenes with stars, circles and hearts are drawn oftener."""
        pieces: dict[str, list[Tensor]] = {name: [] for name in FIELDS}
        for path in chunk_files(folder):
            with safe_open(path, "pt") as chunk:
                for name in FIELDS:
                    pieces[name].append(chunk.get_tensor(name))
        weights = [scene_weight(prompt, hard_shapes) for prompt in read_prompts(folder)]
        empty_words, empty_pooled = text.encode([""])
        tensors = {name: torch.cat(piece) for name, piece in pieces.items()}
        cumulative = np.cumsum(weights) / np.sum(weights)
        return cls(**tensors, empty_words=empty_words[0], empty_pooled=empty_pooled[0], cumulative=cumulative)

    def choose(self, rng: np.random.Generator, count: int) -> Tensor:
        """Indices of randomly drawn scenes."""
        drawn = np.searchsorted(self.cumulative, rng.random(count))
        return torch.from_numpy(np.minimum(drawn, len(self.cumulative) - 1))


def scene_weight(prompt: str, hard_shapes: bool) -> float:
    """How often a scene is drawn, relative to a square on its own."""
    named = [word for word in prompt.split() if word in SHAPES]
    return max((HARD_SHAPES.get(word, 1.0) for word in named), default=1.0) if hard_shapes else 1.0
