"""Responses from the data: supervised fine-tuning through the trainer."""

from dataclasses import replace

import pytest
import torch

from sdkernels.train import SelfDistillTrainer
from sdkernels.train.dataset_rollout import DatasetRollout
from sdkernels.train.rollout import Sampling


def settings(make_config, **changes):
    return make_config(
        recipe="nll", context="none", rollout_backend="dataset", num_generations=1, **changes
    )


def test_a_response_is_the_solution_and_an_end_of_turn(tokenizer, make_problems):
    example = make_problems(1)[0]
    ((sample,),) = DatasetRollout(tokenizer).responses([example], Sampling(max_new_tokens=500))
    assert sample.token_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(sample.token_ids[:-1]) == example.solution
    assert not sample.truncated


def test_a_long_solution_is_cut_and_named_once(tokenizer, make_problems, caplog):
    example = make_problems(1)[0]
    backend = DatasetRollout(tokenizer)
    for _ in range(2):
        ((sample,),) = backend.responses([example], Sampling(max_new_tokens=5))
        assert sample.truncated
        assert len(sample.token_ids) == 5
    assert [record.message for record in caplog.records] == [
        "example 'add-0' (row 1): its solution of 38 tokens is cut at max_completion_length=5"
    ]


def test_one_step_is_plain_supervised_fine_tuning(
    make_model, tokenizer, make_problems, make_config
):
    examples = make_problems(4)
    model, plain = make_model(seed=3), make_model(seed=3)
    config = settings(
        make_config,
        max_steps=1,
        per_device_train_batch_size=4,
        max_completion_length=200,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
    )
    SelfDistillTrainer(model, config, examples, tokenizer).train()

    total, count = torch.zeros(()), 0
    for example in examples:
        prompt = tokenizer.apply_chat_template(
            example.prompt, add_generation_prompt=True, return_dict=False
        )
        response = [*tokenizer(example.solution)["input_ids"], tokenizer.eos_token_id]
        logits = plain(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        total = total - logits.log_softmax(-1)[range(len(response)), response].sum()
        count += len(response)
    (total / count).backward()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            stepped = parameter - 0.1 * parameter.grad
            trained = dict(model.named_parameters())[name]
            torch.testing.assert_close(trained, stepped, rtol=1e-4, atol=1e-6)


def test_rows_without_a_response_are_named(make_model, tokenizer, make_problems, make_config):
    examples = [replace(example, solution=None) for example in make_problems(5)]
    with pytest.raises(ValueError, match=r"`solution`.*'add-0' \(row 1\).*and 2 more"):
        SelfDistillTrainer(make_model(), settings(make_config), examples, tokenizer)


def test_a_group_of_responses_is_refused(make_config):
    with pytest.raises(ValueError, match=r"num_generations=4.*set num_generations=1"):
        make_config(recipe="nll", rollout_backend="dataset", num_generations=4)


def test_prompts_alone_are_refused(tokenizer):
    with pytest.raises(TypeError, match="responses"):
        DatasetRollout(tokenizer).generate([[1]], 1, Sampling(), seed=0)
