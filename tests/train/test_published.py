"""The `published:` block of a configuration."""

from pathlib import Path

import pytest

from sdkernels.train.published import Published, Result, read_published


def file(folder: Path, text: str, name: str = "a") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_blocks_add_up_along_the_bases(tmp_path: Path) -> None:
    file(
        tmp_path,
        "published:\n  source: paper\n  confidence: note\n"
        "  results: [{metric: m, value: 1}]\n  differs: [one]",
        "base",
    )
    own = file(
        tmp_path,
        "base: base.yaml\npublished:\n  source: table 2\n"
        "  results: [{metric: n, before: 1.5, after: 2, where: here}]\n  differs: [two]",
    )
    assert read_published(own) == Published(
        source="table 2",
        confidence="note",
        results=(Result("m", value=1), Result("n", before=1.5, after=2, where="here")),
        differs=("one", "two"),
    )
    assert read_published(file(tmp_path, "recipe: grpo", "bare")) == Published()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("text", "published: expected a mapping, got str"),
        ("{sources: x}", r"sources'.*did you mean 'source'"),
        ("{confidence: sure}", "confidence='sure'"),
        ("{results: {metric: a}}", "results must be a list"),
        ("{results: [a]}", "a result needs a `metric`, got 'a'"),
        ("{results: [{value: 1}]}", "a result needs a `metric`"),
        ("{results: [{metric: m}]}", "result 'm' needs a `value`, an `after` or a `finding`"),
        ("{results: [{metric: m, before: 1}]}", "needs a `value`"),
        ("{results: [{metric: m, values: 1}]}", "did you mean 'value'"),
        ("{differs: [a: b]}", r"differs must be text \(quote it\), got {'a': 'b'}"),
        ("{source: 2603.24472}", r"source must be text \(quote it\), got 2603\.24472"),
    ],
)
def test_a_wrong_block_names_the_file(tmp_path: Path, block: str, message: str) -> None:
    path = file(tmp_path, f"published: {block}")
    with pytest.raises(ValueError, match=message) as caught:
        read_published(path)
    assert "a.yaml" in str(caught.value)
