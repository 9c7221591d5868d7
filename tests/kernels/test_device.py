"""What only a device can show: streams, graphs, synchronisation, memory, occupancy, real sizes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.logit_problems import DEVICE

import sdkernels as sd
from sdkernels.testing import assert_close_to_reference, input_families

pytestmark = pytest.mark.gpu

MIB = 1 << 20


def _problem(tokens: int, hidden: int, vocab: int, dtype: torch.dtype = torch.bfloat16) -> Any:
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE, dtype=dtype)

    hidden_TD = normal(tokens, hidden).requires_grad_()
    weight_VD = (normal(vocab, hidden) * 2 / hidden**0.5).requires_grad_()
    teacher = sd.HiddenTeacher(normal(tokens, hidden), weight_VD.detach())
    return hidden_TD, weight_VD, teacher, torch.randint(vocab, (tokens,), device=DEVICE)


def _step(problem: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden_TD, weight_VD, teacher, ids = problem
    hidden_TD.grad = weight_VD.grad = None
    loss, _ = sd.token_loss(
        hidden_TD,
        weight_VD,
        lambda s, tok: s.kl_teacher_student + 0.1 * s.logp + 0.01 * s.entropy,
        targets=ids,
        teacher=teacher,
        backend="triton",
        **more,
    )
    loss.backward()
    return loss.detach(), hidden_TD.grad, weight_VD.grad


@contextmanager
def _synchronisation_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nothing_synchronises_between_the_start_and_the_end_of_a_step(dtype: torch.dtype) -> None:
    problem = _problem(600, 256, 5000, dtype)
    kept = (torch.arange(600, device=DEVICE) % 3 != 0).nonzero().squeeze(-1)
    _step(problem)  # compiles, which synchronises
    torch.cuda.synchronize()
    with _synchronisation_is_an_error():
        _step(problem, chunk_bytes=16 * MIB)
        sd.token_stats(*problem[:2], teacher=problem[2], targets=problem[3], jsd_beta=0.5)
        _step(problem, mask=kept)


def test_shifted_views_do_not_synchronise_either() -> None:
    """hidden[:, :-1] of a batch, as every next-token loss takes it."""
    hidden_TD, weight_VD, _, _ = _problem(8 * 75, 256, 5000)
    states = hidden_TD.detach().reshape(8, 75, 256)
    ids = torch.randint(5000, (8, 75), device=DEVICE)
    teacher = sd.HiddenTeacher(states[:, :-1] * 1.5, weight_VD.detach())
    problem = (states[:, :-1].requires_grad_(), weight_VD, teacher, ids[:, 1:])
    _step(problem)
    torch.cuda.synchronize()
    with _synchronisation_is_an_error():
        _step(problem, chunk_bytes=16 * MIB)


def test_a_mask_synchronises_once_before_the_first_product() -> None:
    problem = _problem(600, 256, 5000)
    mask = torch.arange(600, device=DEVICE) % 3 != 0
    _step(problem, mask=mask)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _step(problem, mask=mask, chunk_bytes=16 * MIB)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([item for item in caught if "synchronizing" in str(item.message)]) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_is_captured_in_a_graph_and_replayed_to_the_bit(dtype: torch.dtype) -> None:
    problem = _problem(600, 256, 5000, dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [part.clone() for part in _step(problem, chunk_bytes=16 * MIB)]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step(problem, chunk_bytes=16 * MIB)
    for part in captured:
        part.zero_()
    graph.replay()
    for part, value in zip(captured, expected, strict=True):
        assert torch.equal(part, value)


def test_a_step_on_another_stream_is_the_same_to_the_bit() -> None:
    problem = _problem(600, 256, 5000)
    expected = [part.clone() for part in _step(problem)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = _step(problem)
    side.synchronize()
    for part, value in zip(found, expected, strict=True):
        assert torch.equal(part, value)


@pytest.mark.multigpu
def test_tensors_of_another_than_the_current_device_are_served() -> None:
    problem = _problem(60, 64, 500)
    expected = _step(problem)
    there = torch.device("cuda", 1)
    hidden, weight = (part.detach().to(there).requires_grad_() for part in problem[:2])
    teacher = sd.HiddenTeacher(problem[2].hidden.to(there), weight.detach())
    found = _step((hidden, weight, teacher, problem[3].to(there)))
    for part, value in zip(found, expected, strict=True):
        assert torch.equal(part.to(value.device), value)


def test_a_hundred_repetitions_are_one_result() -> None:
    problem = _problem(4096, 256, 32000)
    first = [part.clone() for part in _step(problem, chunk_bytes=256 * MIB)]
    for _ in range(100):
        for part, value in zip(_step(problem, chunk_bytes=256 * MIB), first, strict=True):
            assert torch.equal(part, value)


def test_memory_stays_within_the_budget_and_does_not_grow_with_the_tokens() -> None:
    budget = 256 * MIB
    for tokens in (4096, 32768):
        problem = _problem(tokens, 256, 65536)
        _step(problem, chunk_bytes=budget)
        problem[0].grad = problem[1].grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _step(problem, chunk_bytes=budget)
        extra = torch.cuda.max_memory_allocated() - before
        # The weight's gradient is summed in float32, then rounded; the hidden states' is bf16.
        gradients = problem[1].numel() * (4 + 2) + problem[0].numel() * 2
        per_token = tokens * 4 * 16
        assert extra <= budget + gradients + per_token + 32 * MIB


def test_two_hundred_thousand_tokens() -> None:
    tokens = 200_000
    hidden, weight, teacher, ids = _problem(tokens, 64, 1000)
    stats = sd.token_stats(hidden.detach(), weight.detach(), teacher=teacher, targets=ids)
    for rows in (slice(0, 64), slice(tokens - 64, tokens)):
        exact = (hidden.detach()[rows].double() @ weight.detach().double().T).log_softmax(-1)
        expected = exact.gather(-1, ids[rows, None]).squeeze(-1)
        torch.testing.assert_close(stats.logp[rows].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("vocab", [50257, 262144])
def test_gradients_with_a_random_upstream_per_token(dtype: torch.dtype, vocab: int) -> None:
    inputs = input_families()["peaked"](130, 192, vocab, dtype=dtype).to(DEVICE)
    upstream = torch.randn(3, 130, device=DEVICE, dtype=torch.float64)

    def gradients(dtype: torch.dtype, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        held = inputs.to(dtype)
        hidden, weight = held.hidden_TD.requires_grad_(), held.weight_VD.requires_grad_()
        teacher = sd.HiddenTeacher(held.teacher_hidden_TD, held.teacher_weight_VD)
        stats = sd.token_stats(hidden, weight, teacher=teacher, jsd_beta=0.5, backend=backend)
        outputs = [stats.kl_teacher_student, stats.jsd, stats.entropy]
        found = torch.autograd.grad(
            outputs, [hidden, weight], [upstream[i].to(outputs[i].dtype) for i in range(3)]
        )
        return found[0], found[1]

    found = gradients(dtype, "triton")
    exact = gradients(torch.float64, "torch")
    plain = gradients(dtype, "torch")
    for name, value, right, same in zip(("hidden", "weight"), found, exact, plain, strict=True):
        assert_close_to_reference(value, right, same, kind="gradient", name=name)


def test_auto_takes_the_triton_rows() -> None:
    from sdkernels.rows import resolve_backend

    assert resolve_backend("auto", DEVICE).name == "triton"
