"""What one branch has computed and may use again: residuals and signals, keys and values, outputs of layers.

All of it belongs to one layout at a time; a transition moves it or leaves it behind.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ralu_cache.engine.signals import measured, view_of
from ralu_cache.engine.verdict import Group
from ralu_cache.history.attention import KeyValueMemory, Rows
from ralu_cache.history.feature import Counts, Feature
from ralu_cache.history.layer_cache import LayerCache
from ralu_cache.history.ledger import Ledger, Samples
from ralu_cache.history.residuals import History
from ralu_cache.history.trends import RESIDUAL, TREND, residual_history, token_gaps, trend_of
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.plane.token_map import Kind, map_tokens, take
from ralu_cache.temporal.policy import Policy, Situation, TokenView

SIGNAL = "signal"


class BranchCache:
    """The caches of one branch, of the kinds that its policy keeps.

    ledger: residuals and token signals; memory: keys and values; layers: what layers gave. fill: see `Geometry`.
    """

    def __init__(self, policy: Policy, layout: TokenLayout, fill: int = 1) -> None:
        self.policy, self.layout, self.fill = policy, layout, fill
        self.ledger = Ledger()
        self.memory: KeyValueMemory | None = None
        self.layers: LayerCache | None = None
        self.inherits = policy.transition in ("inherit", "kept")
        self._kept: Tensor | None = None  # (B, n) bool, the tokens that the latest transition left as they were
        self._image: Tensor | None = None  # the latest signal, where it is not one of tokens
        self._begin()

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        memory = 0 if self.memory is None else self.memory.nbytes
        return self.ledger.nbytes + memory + (0 if self.layers is None else self.layers.nbytes)

    @property
    def newest(self) -> Feature | None:
        """The latest residual."""
        nodes = self.ledger.nodes(RESIDUAL, self.layout)
        return nodes[0] if nodes else None

    def usable(self, marks: tuple[int, int, int]) -> bool:
        """True if a sample's residual may be used, by its marks counted."""
        empty, inherited, _ = marks
        return not empty and (self.inherits or not inherited)

    # ---- residuals

    def record(self, group: Group, residual: Tensor, situation: Situation, mended: tuple[int, ...]) -> None:
        """Keep the residual that a group just computed, (k, n + extra, d), or (k, m, d) of its tokens alone.

        Where layers are cached it is of all tokens in any case, and those of the group are kept. mended: see `Verdict`.
        """
        keep, step, sigma = self.policy.order + 1, situation.step, situation.sigma
        if group.tokens is None:
            self.ledger.record(RESIDUAL, residual, self.layout, step, sigma, group.samples, keep)
        else:
            if self.layers is not None:
                residual = take(residual, group.tokens)
            samples = group.samples or Samples.of(range(self.layout.batch), residual.device)
            known = self._with_mended(samples, mended)
            self.ledger.record_tokens(
                RESIDUAL, residual, self.layout, step, sigma, samples.rows, group.tokens, keep, known
            )
        if TREND in self.ledger:
            older = self.ledger.get(RESIDUAL, self.layout, 1)
            if older is not None and all(taken.step >= 0 for taken in older.passes):
                self.ledger.drop(TREND)  # every sample has a trend of its own

    def uniform(self, most: int) -> list[tuple[float, Tensor]] | None:
        """The newest residuals with their levels, at most so many, where the host knows all that is to be known."""
        return None if TREND in self.ledger else self.ledger.uniform_history(RESIDUAL, self.layout, most)

    def history(self) -> History:
        """The residuals as they may be forecast from."""
        inherited, by_token = self.policy.transition == "inherit", self.memory is not None
        return residual_history(self.ledger, self.layout, inherited, by_token)

    def levels(self) -> list[Tensor]:
        """The levels (B,) of the passes that layers were kept of."""
        return [level for level, _ in self.ledger.history(RESIDUAL, self.layout, inherited=self.inherits)]

    # ---- signals

    def signal(self) -> Tensor | None:
        """The signal of the step before."""
        if self.policy.signal != "modulated":
            return self._image
        reading = self.ledger.read(SIGNAL, self.layout, inherited=self.inherits)
        return None if reading is None else reading.values

    def keep_signal(self, signal: Tensor | None, situation: Situation) -> None:
        """Token signals move with the layout, so the ledger keeps them; images stay as they are."""
        if signal is None or self.policy.signal != "modulated":
            self._image = signal
        else:
            self.ledger.record(SIGNAL, signal, self.layout, situation.step, situation.sigma)

    # ---- single tokens

    def view(self, situation: Situation, newest: Feature) -> TokenView:
        """What a policy may know of the tokens of a call. newest: their residual."""
        measure = partial(measured, self.ledger, self.layout, self.memory, self.layers)
        return view_of(situation, newest, self._kept, measure)

    def rows(self, group: Group, layout: TokenLayout, text: int, ahead: Tensor | None) -> Rows | None:
        """What the blocks need to know to remember keys and values, and to run some tokens alone, once they run for it.

        None where they do not run, or nothing is remembered. layout: of the call; text: its text tokens; ahead: see
        `TokenView`, None where all is computed. Raises StaleFeature if the memory has another layout.
        """
        if self.memory is None or not group.computes:
            return None
        self.memory.check(layout)
        if ahead is None:
            ahead = torch.zeros(layout.batch, layout.tokens, device=layout.refined.device)
        gap = token_gaps(self.ledger, layout)
        if group.rows is not None:
            ahead, gap = ahead[group.rows], gap[group.rows]
        return self.memory.begin(text, ahead, gap, group.rows, group.tokens, group.counts)

    # ---- other samples, other layouts

    def pick(self, samples: Samples, layout: TokenLayout) -> BranchCache:
        """What is kept of some samples, under a `layout` that has theirs."""
        part, index = BranchCache(self.policy, layout, self.fill), samples.rows
        part.ledger = self.ledger.pick(samples, layout)
        part.memory = None if self.memory is None else self.memory.pick(index, layout)
        part.layers = None if self.layers is None else self.layers.pick(index, layout)
        part._image = None if self._image is None else self._image[index]
        part._kept = None if self._kept is None else self._kept[index]
        return part

    def transfer(self, layout: TokenLayout, changed: Tensor | None) -> None:
        """A transition to `layout`: "inherit" carries everything over, "reset" forgets it, "trend" all but one thing.

        Where layers or their keys and values are kept, and another number of padding tokens comes in, all begins anew.
        changed: (B, n) bool, the tokens of `layout` into which fresh noise was mixed.
        """
        moved = map_tokens(self.layout, layout)
        self._kept = moved.kind == Kind.KEPT
        padded_alike = (layout.tokens - self.layout.tokens) % self.fill == 0
        if self.inherits and (padded_alike or self.policy.caches == "stack"):
            self.ledger.move(layout, moved, changed)
            if self.memory is not None:
                self.memory.move(layout, moved)
            if self.layers is not None:
                self.layers.move(layout, moved)
            self.layout = layout
            for node in self.ledger.nodes(RESIDUAL, layout):
                _ = node.counts  # what waits for the device does so here, not in the steps to come
            return
        trend = trend_of(self.ledger, self.layout) if self.policy.transition == "trend" else None
        self.ledger.clear()
        if trend is not None:
            self.ledger.store(TREND, trend.move(layout, moved, changed))
        self._image = None
        self.layout = layout
        self._begin()

    # ---- inner workings

    def _begin(self) -> None:
        """Begin what is kept beside the ledger anew."""
        if self.policy.caches == "rows":
            self.memory = KeyValueMemory(self.layout, self.policy.order > 0)
        elif self.policy.caches != "stack":
            self.layers = LayerCache(self.layout)

    def _with_mended(self, samples: Samples, mended: tuple[int, ...]) -> Counts:
        """The marks of all samples counted, once those of `samples` whose tokens are being computed are VALID."""
        newest = self.newest
        assert newest is not None
        counts = [*newest.counts]
        for sample in samples.numbers:
            empty, inherited, valid = counts[sample]
            counts[sample] = empty, inherited - mended[sample], valid + mended[sample]
        return tuple(counts)
