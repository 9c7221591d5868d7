"""Files of a run folder that grow while it trains: `metrics.jsonl` and `tokens.jsonl`.

Both hold one JSON object a line with a `step`. A resumed run first drops the lines of steps that it
is going to repeat, so no step appears twice.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from sdkernels.train import strict_json
from sdkernels.train.batch import MicroBatch, Row
from sdkernels.train.markers import marker_flags
from sdkernels.train.prompts import PromptEncoder

METRICS_FILE = "metrics.jsonl"
TOKENS_FILE = "tokens.jsonl"
DECIMALS = 5
LONGEST_CHARACTER_TOKENS = 8


class JsonLines:
    """An append-only file of JSON objects, each flushed as it is written."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def append(self, record: dict[str, Any]) -> None:
        """Add one line; NaN and infinities become null and are named in `not_finite`."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as handle:
            handle.write(strict_json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; one that a kill cut short is left out."""
        if not self.file.is_file():
            return []
        records = []
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def keep_until(self, step: int) -> None:
        """Drop the lines of later steps, in one rename."""
        if not self.file.is_file():
            return
        self.rewrite([record for record in self.read() if record["step"] <= step])

    def rewrite(self, records: list[dict[str, Any]]) -> None:
        """Replace all lines, in one rename."""
        draft = self.file.with_name(f".{self.file.name}")
        draft.write_text(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8"
        )
        os.replace(draft, self.file)


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file in one rename, so that no reader sees half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}")
    draft.write_text(strict_json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, file)


def token_texts(ids: list[int], tokenizer: Any) -> list[str]:
    """Text of each token such that together they make the response; a character split over tokens
    stands at its last one.
    """
    texts: list[str] = []
    pending: list[int] = []
    # Some tokenizers drop the blank before the first token they decode, so each is decoded behind
    # another one.
    before: list[int] = []
    for token in ids:
        pending.append(token)
        lead = tokenizer.decode(before)
        text = tokenizer.decode(before + pending)[len(lead) :]
        if "\ufffd" in text and len(pending) < LONGEST_CHARACTER_TOKENS:
            texts.append("")
            continue
        texts.append(text)
        before, pending = [token], []
    return texts


def token_record(
    row: Row,
    columns: dict[str, Tensor],
    *,
    condition: str,
    step: int,
    encoder: PromptEncoder,
    teacher_encoder: PromptEncoder,
) -> dict[str, Any]:
    """One line of `tokens.jsonl`. `columns` are `[L]` statistics of this row; a missing one is
    null.
    """
    texts = token_texts(row.response_ids, encoder.tokenizer)
    record: dict[str, Any] = {
        "condition": condition,
        "step": step,
        "example_id": row.example.id,
        "success": row.rollout.success,
        "prompt_text": encoder.text(row.example.prompt),
        "teacher_prompt_text": None
        if row.teacher_messages is None
        else teacher_encoder.text(row.teacher_messages),
        "tokens": texts,
    }
    for name in ("logp", "teacher_logp", "gap", "entropy", "teacher_entropy", "direction"):
        values = columns.get(name)
        record[name] = (
            None if values is None else [round(value, DECIMALS) for value in values.tolist()]
        )
    record["marker"] = marker_flags(texts)
    return record


def row_columns(batch: MicroBatch, fields: dict[str, Tensor], row: Row) -> dict[str, Tensor]:
    """The packed statistics of one row, float32 on the CPU."""
    mine = batch.row_N == batch.rows.index(row)
    columns = {
        name: value[mine].float().cpu() for name, value in fields.items() if value.dim() == 1
    }
    if "teacher_logp" in columns and "logp" in columns:
        columns["gap"] = columns["teacher_logp"] - columns["logp"]
    return columns


def pick_rows(rows: list[Row], number: int) -> list[Row]:
    """Rows to show: successes and failures in turn, in the order of the batch."""
    shown = [row for row in rows if row.has_tokens]
    successes = [row for row in shown if row.rollout.success]
    failures = [row for row in shown if not row.rollout.success]
    picked: list[Row] = []
    while len(picked) < number and (successes or failures):
        for pool in (successes, failures):
            if pool and len(picked) < number:
                picked.append(pool.pop(0))
    return picked
