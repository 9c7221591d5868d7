"""Three chat formats in minimal form: how a conversation becomes the text that a model reads."""

from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

# ChatML, as SmolLM2-135M-Instruct has it: a system message is put first where there is none.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Llama 3: headers, trimmed contents, one end-of-turn token.
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# Qwen3: ChatML without a default system message; earlier answers lose their thinking; with
# enable_thinking=False the generation prompt ends in an empty think block.
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}"
    "{{ message.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "qwen3": QWEN3}


def render(template: str, messages: list[dict[str, str]], **settings: Any) -> str:
    """The prompt up to where the response begins, as transformers renders it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    settings = {"add_generation_prompt": True, **settings}
    return environment.from_string(template).render(messages=messages, **settings)
