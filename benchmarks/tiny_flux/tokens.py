"""Token sets: packing latents into tokens, position ids, and mixed sets of coarse and fine tokens.

One token covers 2x2 latent pixels, that is 8x8 pixels: the 128-pixel image has 16x16 fine tokens, the half-size image
8x8 coarse ones. Position ids are (row, column) in units of the token's own grid unless a frame scales or shifts them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COARSE, FINE = 8, 16
REFINED_COUNTS = (12, 16, 24, 32)


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) latent pixels to (B, H*W/4, 4*C) tokens, in FluxPipeline's order."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def position_ids(side: int) -> Tensor:
    """(side*side, 3) float32 ids of a square token grid: zero, row, column."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros(side, side), row, column], -1).reshape(-1, 3).float()


def children() -> Tensor:
    """(64, 4) indices of the four fine tokens that every coarse token covers."""
    corner = (torch.arange(COARSE)[:, None] * 2 * FINE + torch.arange(COARSE)[None] * 2).reshape(-1)
    return torch.stack([corner, corner + 1, corner + FINE, corner + FINE + 1], 1)


@dataclass(frozen=True)
class MixedTokens:
    """A token set in which some coarse tokens are replaced by their four fine children.

    `kept` indexes coarse tokens, `fine` fine tokens; the set is the kept ones followed by the fine ones.
    """

    kept: Tensor
    fine: Tensor

    @classmethod
    def refine(cls, refined: np.ndarray) -> "MixedTokens":
        """Split the coarse tokens with these indices."""
        kept = np.setdiff1d(np.arange(COARSE**2), refined)
        return cls(torch.from_numpy(kept), children()[torch.from_numpy(np.sort(refined))].reshape(-1))

    def gather(self, half: Tensor, full: Tensor) -> Tensor:
        """(B, 64, D) coarse and (B, 256, D) fine tokens to the mixed set (B, kept + fine, D)."""
        return torch.cat([half[:, self.kept], full[:, self.fine]], 1)

    def positions(self, doubled: bool) -> Tensor:
        """Ids in the coarse frame (fine tokens at half steps), or doubled (coarse tokens at even places)."""
        ids = torch.cat([position_ids(COARSE)[self.kept], position_ids(FINE)[self.fine] / 2])
        return ids * 2 if doubled else ids


def random_mixed(rng: np.random.Generator) -> MixedTokens:
    """Refine a random set of coarse tokens, or a blob with a ragged edge, with equal chances."""
    count = int(rng.choice(REFINED_COUNTS))
    if rng.random() < 0.5:
        return MixedTokens.refine(rng.permutation(COARSE**2)[:count])
    y, x = rng.uniform(0, COARSE - 1, 2)
    grid = position_ids(COARSE).numpy()
    distance = (grid[:, 1] - y) ** 2 + (grid[:, 2] - x) ** 2
    return MixedTokens.refine(np.argsort(distance + rng.uniform(0, 4, COARSE**2))[:count])
