"""`TokenStats` and `Tokens` as containers, and the table of statistics in the documentation."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch

from sdkernels.engine.stats import (
    DIFFERENTIABLE,
    STATISTICS,
    MissingFieldError,
    Tokens,
    TokenStats,
    pick,
)

ENTROPY = torch.arange(4.0)
IDS = torch.arange(12).reshape(4, 3)


def make_stats() -> TokenStats:
    return TokenStats({"entropy": ENTROPY, "topk_ids": IDS})


def test_reading() -> None:
    stats = make_stats()
    assert stats.entropy is stats["entropy"] is ENTROPY
    assert list(stats) == ["entropy", "topk_ids"]
    assert dict(stats.items())["topk_ids"] is IDS
    assert "entropy" in stats
    assert "logp" not in stats
    assert hasattr(stats, "entropy")
    assert not hasattr(stats, "logp")
    assert repr(stats) == "TokenStats(entropy[4], topk_ids[4, 3])"


def test_missing_statistics_are_attribute_and_value_errors() -> None:
    for error in (AttributeError, ValueError, MissingFieldError):
        with pytest.raises(error, match=r"'logp' was not computed: pass targets= \(computed here"):
            _ = make_stats().logp
        with pytest.raises(error, match="unknown statistic 'entropi'; did you mean 'entropy'"):
            _ = make_stats()["entropi"]
        with pytest.raises(error, match=r"tokens= has a: add tokens=\{'adv': \.\.\.\}"):
            _ = Tokens({"a": ENTROPY}).adv
    with pytest.raises(ValueError, match="tokens= has nothing"):
        _ = Tokens({}).adv


@pytest.mark.parametrize("name", STATISTICS)
def test_every_statistic_says_what_it_needs(name: str) -> None:
    with pytest.raises(MissingFieldError, match=f"statistic '{name}' was not computed: pass "):
        getattr(TokenStats({}), name)


def test_copies_and_pickles() -> None:
    for other in (copy.copy(make_stats()), copy.deepcopy(make_stats())):
        assert torch.equal(other.entropy, ENTROPY)
    assert torch.equal(pickle.loads(pickle.dumps(make_stats())).topk_ids, IDS)


def test_map() -> None:
    doubled = make_stats().map(lambda tensor: tensor * 2)
    assert torch.equal(doubled.entropy, 2 * ENTROPY)
    assert torch.equal(doubled.topk_ids, 2 * IDS)


def test_pick() -> None:
    rows = torch.tensor([2, 0, 2])
    leaf = ENTROPY.clone().requires_grad_()
    picked = pick(TokenStats({"entropy": leaf, "topk_ids": IDS}), rows)
    assert isinstance(picked, TokenStats)
    assert torch.equal(picked.entropy, ENTROPY[rows])
    assert not picked.entropy.requires_grad
    assert torch.equal(picked.topk_ids, IDS[rows])
    assert torch.equal(pick(Tokens({"items": IDS}), rows).items, IDS[rows])


def test_the_documentation_has_every_statistic() -> None:
    page = (Path(__file__).parents[2] / "docs" / "engine.md").read_text()
    documented = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for name in re.findall(r"`(\w+)`", cells[0] if cells else ""):
            documented[name] = cells[-1]
    assert set(STATISTICS) <= set(documented)
    for name in STATISTICS:
        assert (documented[name] == "no gradient") == (name not in DIFFERENTIABLE), name
