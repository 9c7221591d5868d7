"""Calling a context: defaults, the empty case, and which needed fields are missing."""

from collections import Counter

from sdkernels.contexts import Context, Example, Privileged, Rollout, Section, Services

EXAMPLE = Example(id="a", prompt=[{"role": "user", "content": "q"}], solution=" s ")
ROLLOUT = Rollout(example_id="a", index=0, text="r", token_ids=[1])


def context(result: Privileged | None) -> Context:
    return Context(name="x", summary="", source="", build=lambda *args, **settings: result)


def test_a_builder_that_returns_none_gives_no_messages_and_is_counted() -> None:
    services = Services()
    assert context(None)(EXAMPLE, ROLLOUT, [], services) is None
    assert services.counts == Counter(empty=1)


def test_settings_reach_the_builder() -> None:
    seen = {}

    def build(*args: object, **settings: object) -> Privileged:
        seen.update(settings)
        return Privileged()

    Context(name="x", summary="", source="", build=build, settings={"choose": 3})(EXAMPLE, ROLLOUT)
    assert seen == {"choose": 3}


def test_sections_make_messages_and_the_prompt_is_left_alone() -> None:
    messages = context(Privileged((Section("i", "l", "t"),), "c"))(EXAMPLE, ROLLOUT)
    assert messages is not None
    assert messages[0]["content"] == "q\n\ni\n[l]\nt\n[end of l]\n\nc"
    assert EXAMPLE.prompt == [{"role": "user", "content": "q"}]


def test_missing_knows_alternatives_and_blank_fields() -> None:
    needs = Context(
        name="x", summary="", source="", build=lambda: None, needs=("answer|solution", "hint")
    )
    assert needs.missing(EXAMPLE) == ["hint"]
    blank = Example(id="b", prompt=EXAMPLE.prompt, answer=" ", hint="h")
    assert needs.missing(blank) == ["answer|solution"]
