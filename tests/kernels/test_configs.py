"""The launch table: what fits where, and what is said where nothing does."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.logit_problems import DEVICE

import sdkernels as sd
from sdkernels.kernels import aot, configs, linear_statistics
from sdkernels.kernels.configs import MOST_IDS, LinearConfig, linear_config, shared_limit

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def test_the_bound_on_shared_memory_holds_for_every_compiled_configuration() -> None:
    rows = json.loads(aot.TABLE.read_text())["rows"]
    linear = {key: row for key, row in rows.items() if key.startswith("linear/")}
    assert len(linear) > 40
    for key, (_, _, shared_bytes, *_) in linear.items():
        _, tiles, name, what, arch = key.split("/")
        ids = int(what.removesuffix(" ids")) if what.endswith(" ids") else 1
        config = linear_config(arch, DTYPES[name], plain=what == "plain", ids=ids)
        assert tiles == f"{config.tokens_tile}x{config.vocab_tile}x{config.hidden_tile}"
        bound = config.shared_bytes(DTYPES[name])
        assert shared_bytes <= bound <= 2 * shared_bytes + 16384 + 1024, key


def _device(monkeypatch: pytest.MonkeyPatch, limit_bytes: int, major: int, minor: int) -> None:
    """This machine, as a GPU of that architecture with so much shared memory a block."""
    properties = SimpleNamespace(
        major=major, minor=minor, shared_memory_per_block_optin=limit_bytes
    )
    module = SimpleNamespace(get_device_properties=lambda device: properties)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)


def test_an_architecture_with_less_than_its_row_wants_gets_smaller_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = torch.device("cuda")
    _device(monkeypatch, 232_448, 9, 0)
    assert shared_limit(device) == 232_448
    full = linear_statistics._config(device, torch.bfloat16, plain=True, ids=0)
    assert (full.vocab_tile, full.num_stages) == (256, 3)
    _device(monkeypatch, 101_376, 9, 0)
    small = linear_statistics._config(device, torch.bfloat16, plain=True, ids=0)
    assert small == linear_config("sm_86", torch.bfloat16)


@pytest.mark.parametrize("arch", ["sm_90", "sm_100", "sm_120", "gfx942"])
def test_several_ids_a_token_get_smaller_tiles_and_parts_of_the_same_width(arch: str) -> None:
    """Of another width the sizes that a budget is planned with would not hold."""
    one, two, most = (linear_config(arch, torch.bfloat16, ids=ids) for ids in (1, 2, MOST_IDS))
    assert two == most
    assert two.vocab_tile < one.vocab_tile
    assert two.vocab_tile * two.tiles == one.vocab_tile * one.tiles


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_too_little_for_every_configuration_names_need_and_limit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = linear_config("unknown", dtype).shared_bytes(dtype)
    _device(monkeypatch, need, 3, 5)
    device = torch.device("cuda")
    config: LinearConfig = linear_statistics._config(device, dtype, plain=False, ids=1)
    assert config.shared_bytes(dtype) == need
    _device(monkeypatch, need - 1, 3, 5)
    message = rf"needs {need} bytes of shared memory a block, sm_35 has {need - 1}"
    with pytest.raises(ValueError, match=message):
        linear_statistics.most_linear_parts(device, dtype, 1000)


def test_the_engine_says_so_or_takes_a_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_statistics, "shared_limit", lambda device: 100)
    monkeypatch.setattr(linear_statistics, "architecture", lambda device: "sm_35")
    hidden, weight = torch.ones(2, 4, device=DEVICE), torch.ones(9, 4, device=DEVICE)
    with pytest.raises(ValueError, match="slab_free=True: the fused linear kernel needs 33792"):
        sd.token_stats(hidden, weight, slab_free=True, backend="triton")
    # 60 bytes: a slab of one token at most, so the fused kernel would be taken.
    stats = sd.token_stats(hidden, weight, chunk_bytes=60, backend="triton")
    torch.testing.assert_close(stats.entropy, torch.full((2,), 9.0, device=DEVICE).log())


def test_a_device_that_names_no_architecture_gets_the_smallest_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As XPUs do: `gpu_eu_count` and the like, neither `major` nor `gcnArchName`."""
    module = SimpleNamespace(get_device_properties=lambda device: SimpleNamespace(gpu_eu_count=1))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    device = torch.device("xpu")
    assert configs.architecture(device) == "xpu"
    assert shared_limit(device) is None
    config = linear_statistics._config(device, torch.bfloat16, plain=False, ids=1)
    assert config == linear_config("unknown", torch.bfloat16)


def test_a_processor_has_no_such_limit() -> None:
    assert shared_limit(torch.device("cpu")) is None
    assert configs.architecture(torch.device("cpu")) == "interpreter"
