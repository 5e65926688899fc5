"""Tensors that the host knows: what pipelines compute from them is known, and equals what it would be."""

import copy

import pytest
import torch
from torch import Tensor

from ralu_cache.known import Known, on_host, plain


def known(*values: float) -> Known:
    return Known.of(torch.tensor(values), torch.tensor(values))


def steps(times: Tensor) -> list[Tensor]:
    """A time step as the pipelines of this library's families hand it to the denoiser."""
    t = times[1:][0]
    return [
        t.expand(3).to(torch.bfloat16) / 1000, t.expand(3), t.repeat(2), next(iter(times)) / 1000, t.to(torch.float16),
        times[:1].repeat(4), torch.stack([t, t]), t.flatten().float() * 2,
    ]  # fmt: skip


def test_what_pipelines_compute_stays_known() -> None:
    times = known(1000.0, 731.25, 12.5)
    for found, expected in zip(steps(times), steps(times.plain), strict=True):
        assert isinstance(found, Known) and type(found.plain) is Tensor
        assert torch.equal(found.plain, expected) and torch.equal(on_host(found), expected)
        assert found.dtype == expected.dtype


def test_all_else_is_plain() -> None:
    times = known(3.0, 4.0)
    for value in (times + 1, times.clone(), times.sin(), torch.nn.functional.silu(times), copy.deepcopy(times)):
        assert type(value) is Tensor
    assert type(plain(times)) is Tensor and plain("text") == "text"
    assert on_host(times.clone()).tolist() == [3.0, 4.0] == times.tolist()


def test_a_tensor_that_the_host_does_not_know_makes_the_result_plain() -> None:
    class Elsewhere(Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("meta")

    mask = torch.ones(2).as_subclass(Elsewhere)
    assert not isinstance(Known.__torch_function__(Tensor.__mul__, (), (known(3.0, 4.0), mask)), Known)


def test_the_host_must_know_the_same_values() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) torch.float32, got \(1,\)"):
        Known.of(torch.ones(2), torch.ones(1))


def test_once_written_to_it_is_known_no_more() -> None:
    times = known(3.0, 4.0)
    half = times / 2
    times *= 2
    assert on_host(times).tolist() == [6.0, 8.0] and on_host(times / 1).tolist() == [6.0, 8.0]
    assert on_host(half).tolist() == [1.5, 2.0]


def test_inference_mode_is_no_hindrance() -> None:
    with torch.inference_mode():
        times = known(3.0, 4.0)
        assert on_host(times[1] / 2).tolist() == 2.0
