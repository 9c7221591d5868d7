"""A tokenizer of one token per word with the white space before it, without transformers."""

import re
from typing import Any


class WordTokenizer:
    """Enough of the interface of a fast tokenizer for counting and cutting."""

    is_fast = True
    all_special_tokens = ("<|im_start|>", "<|im_end|>")

    def __call__(
        self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        assert not add_special_tokens
        words = list(re.finditer(r"\s*\S+", text))
        self.words = [word.group() for word in words]
        return {
            "input_ids": list(range(len(words))),
            "offset_mapping": [word.span() for word in words],
        }


class SlowWordTokenizer(WordTokenizer):
    """The same without offsets: it can only decode."""

    is_fast = False

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)
