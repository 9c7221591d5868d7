"""The cache in front of a model that writes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from helpers.word_tokenizer import WordTokenizer

from sdkernels.contexts import CachedWriter, Message
from sdkernels.contexts.writer import Reply


class Echo(CachedWriter):
    """Answers with the prompt in capitals; "long" does not fit."""

    def __init__(
        self, cache_dir: Path | None = None, model: str = "m", tokenizer: Any = None
    ) -> None:
        super().__init__(cache_dir, tokenizer)
        self.model = model
        self.asked: list[Any] = []

    def _identity(self) -> dict[str, Any]:
        return {"model": self.model}

    def _ask(self, prompts: Sequence[list[Message]]) -> Iterator[tuple[int, Reply | None]]:
        for index in reversed(range(len(prompts))):
            text = prompts[index][-1]["content"]
            self.asked.append(text)
            yield index, None if text == "long" else Reply(text.upper(), cut=text == "cut")


def say(*texts: str) -> list[list[Message]]:
    return [[{"role": "user", "content": text}] for text in texts]


def test_rows_keep_their_order_and_equal_prompts_are_asked_once() -> None:
    writer = Echo()
    assert writer.write(say("a", "long", "b", "a", "cut")) == ["A", None, "B", "A", "CUT"]
    assert sorted(writer.asked) == ["a", "b", "cut", "long"]
    assert writer.counts == {"asked": 4, "cut": 1, "too_long": 1}
    assert writer.write([]) == []


def test_another_process_finds_the_replies_and_another_model_does_not(tmp_path: Path) -> None:
    Echo(tmp_path).write(say("a", "cut"))
    second = Echo(tmp_path)
    assert second.reply_to(say("cut", "a")) == [Reply("CUT", cut=True), Reply("A")]
    assert second.asked == []
    assert second.counts["cached"] == 2
    other = Echo(tmp_path, model="n")
    other.write(say("a"))
    assert other.asked == ["a"]


def test_a_row_without_a_prompt_is_not_asked_and_not_too_long() -> None:
    writer = Echo()
    assert writer.reply_to([None, *say("a")]) == [None, Reply("A")]
    assert writer.counts["too_long"] == 0


def test_control_tokens_in_a_prompt_do_not_reach_the_model() -> None:
    writer = Echo(tokenizer=WordTokenizer())
    prompts = say("a<|im_end|>b", "a<|im_<|im_end|>end|>b", "ab")
    assert writer.write(prompts) == ["AB", "AB", "AB"]
    assert writer.asked == ["ab"]
    assert prompts == say("a<|im_end|>b", "a<|im_<|im_end|>end|>b", "ab")  # the caller's own stay
    untold = Echo()
    untold.write(prompts[:1])
    assert untold.asked == ["a<|im_end|>b"]


def test_control_tokens_in_the_parts_of_a_prompt_do_not_reach_the_model() -> None:
    class Said(Echo):
        def _ask(self, prompts: Sequence[list[Message]]) -> Iterator[tuple[int, Reply | None]]:
            for index, messages in enumerate(prompts):
                self.asked.append(messages)
                yield index, Reply("yes")

    image = {"type": "image", "url": "a.png"}
    parts: Any = [{"type": "text", "text": "a<|im_end|>b"}, image, {"type": "text", "text": "c"}]
    call: Any = {"role": "assistant", "content": None, "tool_calls": []}
    writer = Said(tokenizer=WordTokenizer())
    assert writer.write([[{"role": "user", "content": parts}, call]]) == ["yes"]
    clean = [{"type": "text", "text": "ab"}, image, {"type": "text", "text": "c"}]
    assert writer.asked == [[{"role": "user", "content": clean}, call]]
    assert parts[0]["text"] == "a<|im_end|>b"  # the caller's own stay
