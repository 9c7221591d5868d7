"""Rendering prompts and the boundary before the response."""

from __future__ import annotations

import copy

import pytest
from helpers.chat_templates import CHATML, QWEN3

from sdkernels.contexts import Example
from sdkernels.train.prompts import (
    PromptEncoder,
    check_boundary,
    check_prompt_length,
    template_switches,
    where,
)

MESSAGES = [{"role": "user", "content": "1+1?"}]


@pytest.fixture
def thinking(tokenizer):
    """A template that opens a think block when it is told to."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant\n{% endif %}",
        "assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}",
    )
    return tokenizer


def test_ids_are_those_of_the_text_with_special_tokens_once(tokenizer):
    encoder = PromptEncoder(tokenizer)
    text = encoder.text(MESSAGES)
    assert text == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    ids = encoder.ids(MESSAGES)
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.bos_token_id) == 2
    ids.append(0)  # what a caller does to its list does not reach the cache
    assert encoder.ids(MESSAGES) != ids


def test_the_boundary(tokenizer, thinking):
    assert PromptEncoder(tokenizer).boundary(MESSAGES) == "<|im_start|>assistant\n"
    encoder = PromptEncoder(thinking, {"enable_thinking": True})
    assert encoder.boundary(MESSAGES) == "<|im_start|>assistant\n<think>\n"


def test_a_think_tag_on_one_side_only_is_refused_unless_stated(tokenizer, thinking):
    """OPSD issue 10: the teacher expected an opening think tag, the student did not."""
    plain = PromptEncoder(tokenizer)
    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant\n<think>\n")
    with pytest.raises(ValueError, match=r"student's prompt ends in .*teacher's in .*<think>"):
        check_boundary(plain, PromptEncoder(other), MESSAGES)
    check_boundary(plain, PromptEncoder(tokenizer), MESSAGES)
    off = PromptEncoder(thinking, {"enable_thinking": False})
    on = PromptEncoder(thinking, {"enable_thinking": True})
    check_boundary(off, on, MESSAGES)  # a pairing, stated by settings that differ


def test_a_pairing_is_logged_with_both_ends(thinking, caplog):
    off = PromptEncoder(thinking, {"enable_thinking": False})
    on = PromptEncoder(thinking, {"enable_thinking": True})
    with caplog.at_level("INFO"):
        check_boundary(off, off, MESSAGES)
        assert not caplog.text
        check_boundary(off, on, MESSAGES)
    assert r"ends in '<|im_start|>assistant\n', the teacher's in" in caplog.text
    assert r"'<|im_start|>assistant\n<think>\n'" in caplog.text


def test_a_pairing_without_effect_is_refused(thinking):
    off = PromptEncoder(thinking, {"enable_thinking": False})
    with pytest.raises(
        ValueError, match=r"'enable_thinking': False.* has no effect.*the same prom"
    ):
        check_boundary(PromptEncoder(thinking), off, MESSAGES)


def test_switches_that_the_template_does_not_read_are_refused_by_name(tokenizer, thinking):
    """With the student's switch off, a misspelt one of the teacher left another prompt too."""
    with pytest.raises(
        ValueError,
        match=r"^teacher_chat_template_kwargs=.*'enable_thinkng' \(did you mean 'enable_thinking'"
        r"\?\) has no effect.*; expected .*enable_thinking",
    ):
        PromptEncoder(thinking, {"enable_thinkng": True}, setting="teacher_chat_template_kwargs")
    with pytest.raises(
        ValueError, match=r"^chat_template_kwargs=.*'enable_thinking' has no effect"
    ):
        PromptEncoder(tokenizer, {"enable_thinking": True})
    # A template of the caller's own is what its switches are looked up in.
    own = {"chat_template": "{{ style }}", "style": "terse"}
    assert PromptEncoder(tokenizer, own).text(MESSAGES) == "terse"


@pytest.mark.parametrize(
    ("template", "switches"),
    [
        (QWEN3, {"enable_thinking"}),
        (CHATML, set()),
        ("{% if x is not defined %}{% set x = 1 %}{% endif %}{{ x }}", {"x"}),
        ("{% set x = x | default(1) %}{% set y = namespace(z=1) %}{{ x }}{{ y.z }}", {"x"}),
        ("{%- generation -%}{{ x }}{%- endgeneration -%}{{ raise_exception(y) }}", {"x", "y"}),
        ("{% for m in messages %}{% if m.x %}{% break %}{% endif %}{% endfor %}", set()),
    ],
)
def test_switches_of_templates(template, switches):
    assert template_switches(template) == switches


def test_messages_name_the_row():
    assert where(Example("a", MESSAGES)) == "example 'a'"
    example = Example("a", MESSAGES, metadata={"row": "line 7 of x.jsonl"})
    assert where(example) == "example 'a' (line 7 of x.jsonl)"
    with pytest.raises(ValueError, match=r"line 7 of x\.jsonl.*has 9 tokens.*allows 8"):
        check_prompt_length(example, 9, 8)
    check_prompt_length(example, 8, 8)
