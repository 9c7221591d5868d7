"""Padded on either side or packed: the same hidden states, and no sequence sees another."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from sdkernels.train.forward import hidden_states
from sdkernels.train.sides import Side, check_packing, make_side, packs_by_itself

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17]]
RESPONSES = [[20, 21, 22], [23, 24, 25, 26, 27, 28, 29, 30], [31], [32, 33]]


def side(*, packed: bool) -> Side:
    return make_side(PROMPTS, RESPONSES, 2, CPU, packed=packed)


def padded_left() -> Side:
    """As generation pads."""
    width = max(len(p) + len(r) for p, r in zip(PROMPTS, RESPONSES, strict=True))
    ids, mask, index = [], [], []
    for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        blank = width - len(prompt) - len(response)
        ids.append([2] * blank + prompt + response)
        mask.append([0] * blank + [1] * (width - blank))
        first = b * width + blank + len(prompt) - 1
        index += range(first, first + len(response))
    return Side(torch.tensor(ids), torch.tensor(mask), torch.tensor(index), 4 * width, 27)


def tiny(kind: str, implementation: str) -> Any:
    import transformers

    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.2,
        "pad_token_id": 2,
    }
    if kind == "Gemma3Text":
        # One layer of each kind, with a window shorter than the sequences.
        sizes |= {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    name = "Gemma3ForCausalLM" if kind == "Gemma3Text" else f"{kind}ForCausalLM"
    config._attn_implementation = implementation
    torch.manual_seed(0)
    return getattr(transformers, name)(config).eval()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Gemma3Text"])
def test_every_layout_gives_the_states_of_each_sequence_alone(kind, implementation):
    model = tiny(kind, implementation)
    with torch.no_grad():
        alone = torch.cat(
            [
                model.model(torch.tensor([p + r])).last_hidden_state[0, len(p) - 1 : -1]
                for p, r in zip(PROMPTS, RESPONSES, strict=True)
            ]
        )
        for made in (side(packed=False), side(packed=True), padded_left()):
            torch.testing.assert_close(hidden_states(model, made), alone, rtol=1e-4, atol=1e-5)
    check_packing(model)


def test_positions_start_at_the_first_token_of_each_sequence():
    right, packed, left = side(packed=False), side(packed=True), padded_left()
    lengths = [len(p) + len(r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    expected = [list(range(length)) for length in lengths]
    assert packed.position_ids.tolist() == [[p for row in expected for p in row]]
    for made in (right, left):
        rows = zip(made.position_ids, made.attention_mask, strict=True)
        assert [row[mask.bool()].tolist() for row, mask in rows] == expected
    assert packed.input_ids.shape == (1, sum(lengths))
    assert (packed.num_tokens, packed.padded_size) == (sum(lengths), 4 * max(lengths))
    assert (right.num_tokens, right.input_ids.numel()) == (packed.num_tokens, packed.padded_size)


def test_a_model_that_mixes_sequences_is_refused(monkeypatch):
    model = tiny("Llama", "sdpa")
    forward = model.model.forward

    @functools.wraps(forward)
    def without_positions(*args, position_ids=None, **rest):
        return forward(*args, **rest)

    monkeypatch.setattr(model.model, "forward", without_positions)
    with pytest.raises(ValueError, match=r"padding_free=True: LlamaForCausalLM does not keep"):
        check_packing(model)


def test_flash_attention_packs_by_itself():
    model = tiny("Llama", "sdpa")
    assert not packs_by_itself(model)
    for name in ("flash_attention_2", "kernels-community/flash-attn3"):
        model.config._attn_implementation_internal = name
        assert packs_by_itself(model)
