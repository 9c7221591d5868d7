"""No call uses a name of the key-value cache that the installed transformers has given up."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch

from sdkernels import patch
from sdkernels.lab.model import Size, make
from sdkernels.lab.sample import sample
from sdkernels.train.kv_cache import cache_name
from sdkernels.train.rollout import Sampling, TransformersRollout


@pytest.fixture(autouse=True)
def _names_given_up_are_errors(monkeypatch: pytest.MonkeyPatch):
    """Arguments warn, fields of outputs are logged."""
    from transformers.utils import logging

    def refuse(message: str, *_: object, **__: object) -> None:
        assert "deprecated" not in message, message

    monkeypatch.setattr(logging.logging.Logger, "warning_once", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        yield


def test_the_name_is_that_of_models_and_of_outputs() -> None:
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.models.llama.modeling_llama import LlamaModel

    assert cache_name() in inspect.signature(LlamaModel.forward).parameters
    assert cache_name() in CausalLMOutputWithPast.__dataclass_fields__


def test_rollouts(make_model, tokenizer) -> None:
    prompts = [tokenizer(text)["input_ids"] for text in ("one", "a longer prompt")]
    rollout = TransformersRollout(make_model, tokenizer)
    # Two samples a prompt share the prompt's cache.
    groups = rollout.generate(prompts, 2, Sampling(max_new_tokens=3), seed=0)
    assert [len(group) for group in groups] == [2, 2]


def test_a_patched_model(make_model) -> None:
    model = make_model().train()
    patch(model)
    ids = torch.tensor([[1, 2, 3]])
    assert model(input_ids=ids, labels=ids, use_cache=True)[cache_name()] is not None


def test_the_lab() -> None:
    generator = torch.Generator().manual_seed(0)
    (found,) = sample(make(Size(8, 1, 1), seed=0), [[1, 2]], generator=generator, max_new_tokens=3)
    assert found.ids
