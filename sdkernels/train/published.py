"""What a paper reports for an experiment, as the `published:` block of a configuration says it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdkernels.train.config_file import base_chain
from sdkernels.train.settings import check_choice

CONFIDENCE = {
    "paper": "read in the paper",
    "code": "read in the published code",
    "note": "from a secondary note only",
    "infer": "inferred",
}
KEYS = ("source", "confidence", "results", "differs")
RESULT_KEYS = ("metric", "value", "before", "after", "finding", "where")


@dataclass(frozen=True)
class Result:
    """One number of the paper, or what it found in words.

    `before` and `after` training, or a single `value`; `where` it stands, if not in `source`.
    """

    metric: str
    value: float | None = None
    before: float | None = None
    after: float | None = None
    finding: str | None = None
    where: str | None = None


@dataclass(frozen=True)
class Published:
    """Where the numbers come from, how sure that is, and what differs here from the paper."""

    source: str = ""
    confidence: str = "paper"
    results: tuple[Result, ...] = ()
    differs: tuple[str, ...] = ()


def read_published(file: str | Path) -> Published:
    """The `published:` block of a configuration and of the files it is based on.

    Results, differences and what they say about a study add up, those of the base first; source and
    confidence are those of the nearest file that names them.

    Raises:
        ValueError: a block that is not of this form, with the file's name.
    """
    found: dict[str, Any] = {"results": (), "differs": ()}
    for path, content in reversed(base_chain(file)):
        block = content.get("published") or {}
        if not isinstance(block, dict):
            raise ValueError(f"{path}: published: expected a mapping, got {type(block).__name__}")
        for key, value in block.items():
            check_choice(f"{path}: key of published", key, KEYS)
            if key in ("source", "confidence"):
                found[key] = _text(path, key, value)
                continue
            if not isinstance(value, list):
                raise ValueError(f"{path}: published: {key} must be a list, got {value!r}")
            if key == "results":
                found[key] += tuple(_result(path, item) for item in value)
            else:
                found[key] += tuple(_text(path, key, item) for item in value)
    published = Published(**found)
    check_choice(f"{file}: published: confidence", published.confidence, tuple(CONFIDENCE))
    return published


def _text(path: Path, key: str, item: Any) -> str:
    # YAML makes a mapping of a sentence with a colon, and a number of an arXiv id.
    if not isinstance(item, str):
        raise ValueError(f"{path}: published: {key} must be text (quote it), got {item!r}")
    return item


def _result(path: Path, item: Any) -> Result:
    if not isinstance(item, dict) or not item.get("metric"):
        raise ValueError(f"{path}: published: a result needs a `metric`, got {item!r}")
    for key in item:
        check_choice(f"{path}: key of result {item['metric']!r}", key, RESULT_KEYS)
    result = Result(**item)
    if result.value is None and result.after is None and result.finding is None:
        raise ValueError(
            f"{path}: published: result {result.metric!r} needs a `value`, an `after` or a "
            "`finding`"
        )
    return result
