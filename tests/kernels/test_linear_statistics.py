"""The fused linear kernel against torch rows in float64 on materialised logits."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.logit_problems import DEVICE, LogitProblem
from helpers.mutant_kernels import mutated_module

from sdkernels.kernels import linear_statistics
from sdkernels.kernels.configs import LinearConfig, linear_config
from sdkernels.kernels.merge import merge
from sdkernels.rows import Side
from sdkernels.rows.torch_rows import TorchRows
from sdkernels.testing import Inputs, assert_close_to_reference, input_families

NAMES = ("logp", "entropy", "lse")


def _inputs(name: str, tokens: int, hidden: int, vocab: int, dtype: torch.dtype) -> Inputs:
    return input_families()[name](tokens, hidden, vocab, dtype=dtype).to(DEVICE)


def _run(
    inputs: Inputs, ids_TK: torch.Tensor | None, module: ModuleType = linear_statistics, **more: Any
) -> dict[str, torch.Tensor]:
    sums = module.linear_partial_statistics(
        inputs.hidden_TD, inputs.weight_VD, inputs.bias_V, ids_TK=ids_TK, **more
    )
    vocab = inputs.weight_VD.shape[0]
    return merge(sums.partials_CFP, vocab=vocab, ids_CK=ids_TK, chosen_CK=sums.chosen_CK)[0]


def _assert_like_oracle(
    inputs: Inputs, ids_TK: torch.Tensor, module: ModuleType = linear_statistics, **side: Any
) -> None:
    found = _run(inputs, ids_TK, module, **side)
    double, single = inputs.to(torch.float64), inputs.to(torch.float32)
    raw = replace(double, bias_V=None).logits(), replace(single, bias_V=None).logits()
    exact, _ = LogitProblem(Side(raw[0], double.bias_V, **side), None, ids_TK).run(
        TorchRows(), torch.float64
    )
    plain, _ = LogitProblem(Side(raw[1], single.bias_V, **side), None, ids_TK).run(TorchRows())
    assert found.keys() == set(NAMES)
    for name in NAMES:
        assert_close_to_reference(found[name], exact[name], plain[name], name=name)


def _ids(tokens: int, vocab: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocab, (tokens, count), generator=generator).to(DEVICE)


@pytest.mark.parametrize("name", input_families())
def test_every_input_family_agrees_with_the_oracle(name: str) -> None:
    _assert_like_oracle(_inputs(name, 20, 16, 700, torch.float32), _ids(20, 700, 2))


@pytest.mark.parametrize(
    ("tokens", "hidden", "vocab"),
    [(1, 16, 1), (63, 24, 127), (64, 64, 128), (65, 80, 129), (3, 200, 1025), (130, 16, 600)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_shape_agrees_with_the_oracle(
    tokens: int, hidden: int, vocab: int, dtype: torch.dtype
) -> None:
    inputs = _inputs("small_random", tokens, hidden, vocab, dtype)
    _assert_like_oracle(inputs, _ids(tokens, vocab, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [1000, 151936])
def test_bfloat16_agrees_with_the_oracle(vocab: int) -> None:
    """On a device only: the interpreter multiplies the raw bits of bfloat16."""
    inputs = _inputs("small_random", 200, 256, vocab, torch.bfloat16)
    _assert_like_oracle(inputs, _ids(200, vocab, 1))


def test_transforms_agree_with_the_oracle() -> None:
    inputs = _inputs("small_random", 20, 16, 700, torch.float32)
    inputs = replace(inputs, bias_V=torch.randn(700, device=DEVICE))
    _assert_like_oracle(inputs, _ids(20, 700, 2), scale=1.4, softcap=3.0, temperature=0.8)


def test_repetition_batch_and_position_change_no_bit() -> None:
    inputs = _inputs("small_random", 70, 32, 700, torch.float32)
    ids_TK = _ids(70, 700, 1)
    whole, again = _run(inputs, ids_TK), _run(inputs, ids_TK)
    part = replace(inputs, hidden_TD=inputs.hidden_TD[40:70])
    alone = _run(part, ids_TK[40:70])
    for name in NAMES:
        assert torch.equal(whole[name], again[name])
        # The interpreter multiplies by BLAS, which orders sums by the shape of a tile's rows.
        if DEVICE.type != "cpu":
            assert torch.equal(whole[name][40:70], alone[name])


def test_groups_of_blocks_that_do_not_divide_evenly_cover_every_token() -> None:
    config = LinearConfig(16, 64, 16, num_warps=4, num_stages=1, tiles=2, group=2)
    inputs = _inputs("small_random", 70, 16, 300, torch.float32)
    found = _run(inputs, None, config=config)
    expected = _run(inputs, None)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_strided_and_transposed_inputs_are_exact() -> None:
    inputs = _inputs("small_random", 20, 16, 300, torch.float32)
    expected = _run(inputs, None)
    wide = torch.full((20, 40), torch.nan, device=DEVICE)
    wide[:, 3:19] = inputs.hidden_TD
    views = replace(inputs, hidden_TD=wide[:, 3:19], weight_VD=inputs.weight_VD.T.contiguous().T)
    for name, value in _run(views, None).items():
        assert torch.equal(value, expected[name])


def test_no_token_gives_empty_statistics() -> None:
    inputs = _inputs("small_random", 1, 16, 300, torch.float32)
    none = replace(inputs, hidden_TD=inputs.hidden_TD[:0])
    assert _run(none, None)["entropy"].shape == (0,)


def test_an_id_outside_the_vocabulary_is_nan() -> None:
    inputs = _inputs("small_random", 3, 16, 300, torch.float32)
    ids_TK = torch.tensor([[5], [-100], [300]], device=DEVICE)
    assert _run(inputs, ids_TK)["logp"].isnan().flatten().tolist() == [False, True, True]


def test_what_the_kernel_does_not_take_is_refused() -> None:
    inputs = _inputs("small_random", 3, 16, 300, torch.float32)
    with pytest.raises(TypeError, match="one dtype for both"):
        _run(replace(inputs, weight_VD=inputs.weight_VD.half()), None)
    with pytest.raises(TypeError, match="float64"):
        _run(inputs.to(torch.float64), None)
    with pytest.raises(ValueError, match="at most 8"):
        _run(inputs, _ids(3, 300, 9))


def test_an_unknown_architecture_gets_tiles_for_the_smallest_shared_memory() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        config = linear_config("sm_121", dtype)
        columns = config.hidden_tile * (config.tokens_tile + config.vocab_tile)
        assert config.num_stages * columns * dtype.itemsize <= 99 * 1024


MUTANTS = {
    "rescale of the mass dropped": ("mass = rescale * mass +", "mass = mass +"),
    "rescale of sum e x dropped": ("sum_x = rescale * sum_x +", "sum_x = sum_x +"),
    "distance of the pivots forgotten": (" + times(rescale * mass, distance)", ""),
    "last tile of a part skipped": ("for tile in range(TILES):", "for tile in range(TILES - 1):"),
    "first column of hidden lost": ("start + columns < HIDDEN", "columns + start < HIDDEN - 1"),
    "chosen id of the next tile": ("ids >= 0) &", "ids > 0) &"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed(name: str, tmp_path: Path) -> None:
    module = mutated_module(tmp_path, "linear_statistics.py", *MUTANTS[name])
    inputs = _inputs("small_random", 8, 24, 700, torch.float32)
    # Growing logits: the pivot moves from tile to tile.
    growing = torch.linspace(0.5, 3.0, 700, device=DEVICE)[:, None]
    inputs = replace(inputs, weight_VD=inputs.weight_VD * growing)
    ids_TK = torch.tensor([[0, 128, 699]] * 8, device=DEVICE)
    _assert_like_oracle(inputs, ids_TK)
    with pytest.raises(AssertionError):
        _assert_like_oracle(inputs, ids_TK, module)
