"""`token_stats` without logits in memory: the same numbers, where it can be and only there."""

from typing import Any

import pytest
import torch
from helpers.logit_problems import DEVICE

import sdkernels as sd
from sdkernels.gates import EntropySign
from sdkernels.rows.triton_rows import TritonRows
from sdkernels.testing import assert_close_to_reference

B, L, D, V = 3, 7, 16, 700
GENERATOR = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(B, L, D, generator=GENERATOR).to(DEVICE)
WEIGHT = torch.randn(V, D, generator=GENERATOR).to(DEVICE)
BIAS = torch.randn(V, generator=GENERATOR).to(DEVICE)
IDS = torch.randint(V, (B, L, 3), generator=GENERATOR).to(DEVICE)
MASK = (torch.rand(B, L, generator=GENERATOR) > 0.3).to(DEVICE)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way was taken, in order."""
    taken: list[str] = []

    def watched(owner: Any, name: str) -> None:
        function = owner.forward

        def run(*given: Any, **more: Any) -> Any:
            taken.append(name)
            return function(*given, **more)

        monkeypatch.setattr(owner, "forward", run)

    watched(TritonRows, "slab")
    watched(type(TritonRows.fused), "fused")
    return taken


def _stats(dtype: torch.dtype, backend: str, **more: Any) -> sd.TokenStats:
    head = sd.LMHead(WEIGHT.to(dtype), BIAS.to(dtype), scale=0.8, softcap=5.0, valid_vocab=V - 3)
    ids = IDS.clamp(max=V - 4)
    gate = EntropySign(quantile=0.6)
    with torch.no_grad():
        return sd.token_stats(
            HIDDEN.to(dtype),
            head,
            targets=ids,
            mask=MASK,
            temperature=0.7,
            gate=gate,
            backend=backend,
            **more,
        )


def test_the_numbers_are_those_of_the_slab(forwards: list[str]) -> None:
    found = _stats(torch.float32, "triton", slab_free=True)
    assert set(forwards) == {"fused"}
    slab = _stats(torch.float32, "triton", slab_free=False)
    assert forwards[-1] == "slab"
    exact = _stats(torch.float64, "torch")
    plain = _stats(torch.float32, "torch")
    assert set(found) == set(slab) == {"logp", "entropy", "lse", "direction"}
    for name in ("logp", "entropy", "lse"):
        assert_close_to_reference(found[name], exact[name], plain[name], name=name)
        torch.testing.assert_close(found[name], slab[name], rtol=1e-5, atol=1e-5)
    assert torch.equal(found.direction, slab.direction)
    assert not found.entropy.requires_grad


def test_chunks_change_nothing() -> None:
    whole = _stats(torch.float32, "triton", slab_free=True)
    # A token's hidden states, partial sums and little else are what a chunk costs here.
    parts = _stats(torch.float32, "triton", slab_free=True, chunk_bytes=1_000)
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name


def test_it_is_taken_where_the_budget_forbids_a_slab(forwards: list[str]) -> None:
    few, many = 200_000, 2_000_000  # bytes: some 60 and some 700 tokens
    for chunk_bytes, expected in ((few, "fused"), (many, "slab")):
        for tokens in (1, L):
            forwards.clear()
            with torch.no_grad():
                hidden = HIDDEN[:, :tokens]
                sd.token_stats(hidden, WEIGHT, chunk_bytes=chunk_bytes, backend="triton")
            assert set(forwards) == {expected}, "the number of tokens must not decide"


def test_where_a_slab_fits_nobody_asks_whether_the_kernel_could(
    monkeypatch: pytest.MonkeyPatch, forwards: list[str]
) -> None:
    """The answer would cost a look at the device in every call."""

    def never(*_: Any) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr(type(TritonRows.fused), "refusal", never)
    with torch.no_grad():
        sd.token_stats(HIDDEN, WEIGHT, backend="triton")
    assert set(forwards) == {"slab"}


def test_what_needs_logits_gets_a_slab_by_itself(forwards: list[str]) -> None:
    few: dict[str, Any] = {"chunk_bytes": 200_000, "backend": "triton"}
    hidden = HIDDEN[:1].clone().requires_grad_()
    sd.token_stats(hidden, WEIGHT, **few)
    with torch.no_grad():
        sd.token_stats(HIDDEN[:1], WEIGHT, teacher=sd.HiddenTeacher(HIDDEN[:1], WEIGHT), **few)
        sd.token_stats(HIDDEN[:1], WEIGHT, topk=3, **few)
        sd.token_stats(HIDDEN[:1], WEIGHT, targets=IDS[:1, :, :1].expand(1, L, 9), **few)
        sd.token_stats(HIDDEN[:1], WEIGHT, slab_free=False, **few)
    assert set(forwards) == {"slab"}


def test_the_named_shortcut_takes_it_too(forwards: list[str]) -> None:
    with torch.no_grad():
        found = sd.linear_logprob(
            HIDDEN, WEIGHT, IDS[..., 0], chunk_bytes=200_000, backend="triton"
        )
    assert set(forwards) == {"fused"}
    expected = (HIDDEN @ WEIGHT.t()).log_softmax(-1).gather(-1, IDS[..., :1]).squeeze(-1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_token() -> None:
    with torch.no_grad():
        stats = sd.token_stats(
            HIDDEN[:, :0], WEIGHT, targets=IDS[:, :0], slab_free=True, backend="triton"
        )
    assert stats.logp.shape == (B, 0, 3)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"teacher": sd.HiddenTeacher(HIDDEN, WEIGHT)}, "needs both models' logits"),
    ({"topk": 3}, "topk=3 needs the logits"),
    ({"targets": IDS.repeat(1, 1, 3)}, "9 ids a token; the fused kernel takes at most 8"),
    ({"slab_dtype": "model", "hidden": HIDDEN.half(), "head": WEIGHT.half()}, "is about slabs"),
    ({"hidden": HIDDEN.half()}, "float16, the head's weight torch.float32"),
    ({"backend": "torch"}, "the torch rows need logits"),
    ({"hidden": HIDDEN.clone().requires_grad_(), "grad": True}, r"under torch\.no_grad"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_by_hand_it_says_why_it_cannot(more: dict[str, Any], message: str) -> None:
    settings = {"hidden": HIDDEN, "head": WEIGHT, "backend": "triton", "grad": False, **more}
    hidden, head, grad = (settings.pop(name) for name in ("hidden", "head", "grad"))
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(ValueError, match=f"slab_free=True: .*{message}"),
    ):
        sd.token_stats(hidden, head, slab_free=True, **settings)


def test_something_else_than_a_bool_is_refused() -> None:
    with pytest.raises(TypeError, match="slab_free='auto': expected True, False or None"):
        sd.token_stats(HIDDEN, WEIGHT, slab_free="auto")  # type: ignore[arg-type]
