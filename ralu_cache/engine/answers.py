"""Answers: denoiser calls that need not run, for a forecast stands in for all of their samples, or guidance is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ralu_cache.adapters.protocols import Adapter, Cost
from ralu_cache.engine.context import current
from ralu_cache.engine.forecasted import stood_in
from ralu_cache.engine.guided import known_answer, with_prediction
from ralu_cache.engine.reading import CallReader
from ralu_cache.engine.run import Run
from ralu_cache.engine.states import Pending, RootState


class Answers:
    """The answers for one denoiser. form: of guidance, see `ralu_cache.engine.guided`."""

    def __init__(self, reader: CallReader, costs: Cost, form: str) -> None:
        self._reader, self._costs, self._form = reader, costs, form

    def to(self, call: Any, state: RootState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a call that needs none: a forecast, or u where no sample is guided. Nothing runs for it.

        None for any other call.
        """
        run: Run = call.run
        given = self._reader.opened(args, kwargs)
        answer = self._forecast(call, state, run, given)
        if answer is None and run.guidance is not None and run.calls:
            answer = known_answer(run, self._form, state.known, given)
            if answer is not None:
                run.tally.count_call(self._costs, given, 0, run)
                run.tally.spare(state.known.flops)
        return None if answer is None else state.known.instead(self._adapter.closed_prediction(answer))

    def note(self, state: RootState, pending: Pending, output: Any) -> None:
        """Remember what the step's first call gave, as the pipeline gets it, for calls that are like it."""
        if pending.run.calls != 1:
            return
        known = state.known
        known.step = pending.run.index
        known.conditional = with_prediction(output, self._adapter.opened_prediction(output[0]))
        known.flops, known.rows = self._costs.flops(pending.call), pending.layout.batch

    @property
    def _adapter(self) -> Adapter:
        return self._reader.adapter

    def _forecast(self, call: Any, state: RootState, run: Run, given: Mapping[str, Any]) -> Tensor | None:
        """The prediction of a call whose samples are all forecast; None for any other."""
        if run.prediction is None or run.prediction.chooser is None or state.known.conditional is None:
            return None
        hidden = self._reader.latents(given)
        rows, _ = run.share(self._reader.begin(run, given))
        working, call.working, state.depth = call.working, state, 1  # what embeds a signal runs for this call
        try:
            _, skipped = self._reader.skipped(state, run, given, rows)
        finally:
            state.rest()
            call.working, state.depth = working, 0
        if not skipped.issuperset(rows):
            return None
        self._adapter.check(given, run.terms(self._reader.module).setting)
        run.tally.count_call(self._costs, given, 0, run)
        run.tally.spare_by_forecast(len(rows), state.known.flops / max(state.known.rows, 1) * len(rows))
        return stood_in(self._adapter, run, hidden, rows)


def answering(stock: Any) -> dict[str, Any]:
    """A denoiser that answers a call whose answer is known without running; any other as it always did."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = current()
        answer: Callable[..., Any] | None = None if call is None else call.handle.answerer(self)
        known = None if answer is None else answer(call, args, kwargs)
        return stock.__call__(self, *args, **kwargs) if known is None else known

    return {"__call__": __call__}
