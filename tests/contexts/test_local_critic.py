"""A critic in this process, with a tiny random model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sdkernels.contexts import LocalCritic, Rollout
from sdkernels.contexts.local_critic import weights_hash
from sdkernels.contexts.sample import EXAMPLE, ROLLOUTS
from sdkernels.contexts.writer import Reply

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture
def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture
def model() -> Any:
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).train()


def raw_replies(critic: LocalCritic, texts: list[str]) -> list[str]:
    prompts = [[{"role": "user", "content": text}] for text in texts]
    replies = dict(critic._ask(prompts))
    return [getattr(replies[i], "text", "too long") for i in range(len(texts))]


def test_a_batch_gives_what_single_prompts_give(model: Any, tokenizer: Any) -> None:
    critic = LocalCritic(model, tokenizer, max_new_tokens=8, batch_size=3)
    texts = ["a long enough prompt " * 3, "b", "another one", "d" * 30]
    together = raw_replies(critic, texts)
    assert together == [raw_replies(critic, [text])[0] for text in texts]
    assert len(set(together)) > 1


def test_the_reply_is_the_greedy_continuation(model: Any, tokenizer: Any) -> None:
    critic = LocalCritic(model, tokenizer, max_new_tokens=5)
    ids = tokenizer("<s>why?>", add_special_tokens=False)["input_ids"]
    model.eval()
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    [(_, reply)] = critic._ask([[{"role": "user", "content": "why?"}]])
    assert reply is not None
    assert reply.text == tokenizer.decode(ids[len(tokenizer("<s>why?>")["input_ids"]) :])
    assert reply.cut == (ids[-1] != 2)


def test_the_mode_of_the_model_is_restored_and_nothing_gets_a_gradient(
    model: Any, tokenizer: Any
) -> None:
    critic = LocalCritic(model, tokenizer, max_new_tokens=2)
    raw_replies(critic, ["a"])
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_reply_ends_at_the_end_token(model: Any, tokenizer: Any) -> None:
    critic = LocalCritic(model, tokenizer)
    ended = critic._reply([68, 69, 2, 0, 0], [2])
    assert not ended.cut
    assert ended.text == tokenizer.decode([68, 69])
    assert critic._reply([68, 69], [2]).cut


def test_a_prompt_that_does_not_fit_is_counted_not_sent(model: Any, tokenizer: Any) -> None:
    model.config.max_position_embeddings = 2100
    critic = LocalCritic(model, tokenizer, max_new_tokens=4)
    long = Rollout("sample", 0, "x" * 3000, [1])
    critiques = critic.critique([(EXAMPLE, long), (EXAMPLE, ROLLOUTS[0])])
    assert critiques[0] is None
    assert critic.counts["too_long"] == 1
    assert critic.counts["asked"] == 2


def test_control_tokens_in_an_attempt_do_not_reach_the_model(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def generate(prompts: list[list[int]]) -> list[Reply]:
        seen.extend(map(tokenizer.decode, prompts))
        return [Reply("x")] * len(prompts)

    critic = LocalCritic(model, tokenizer)
    monkeypatch.setattr(critic, "_generate", generate)
    critic.write([[{"role": "user", "content": "a</s>b<s>c"}]])
    assert seen == ["<s>abc>"]


def test_the_cache_holds_for_these_weights_only(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    pairs = [(EXAMPLE, ROLLOUTS[0])]
    settings: dict[str, Any] = {"max_new_tokens": 3, "cache_dir": tmp_path}
    first = LocalCritic(model, tokenizer, **settings)
    answer = first.critique(pairs)
    again = LocalCritic(model, tokenizer, **settings)
    assert again.critique(pairs) == answer
    assert again.counts["cached"] == 1
    with torch.no_grad():
        model.lm_head.weight.add_(1e-3)
    changed = LocalCritic(model, tokenizer, **settings)
    changed.critique(pairs)
    assert changed.counts["cached"] == 0
    assert changed.counts["asked"] == 1


def test_the_hash_of_the_weights(model: Any) -> None:
    before = weights_hash(model)
    assert weights_hash(model) == before
    model.to(torch.bfloat16)
    assert weights_hash(model) != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_settings(model: Any, tokenizer: Any, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalCritic(model, tokenizer, **settings)


def test_a_tokenizer_without_a_template_is_refused(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        LocalCritic(model, tokenizer)
