"""Put the page together: head in plain words, sections, style and script, all in one file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from sdkernels.report import (
    at_k,
    bars,
    colours,
    curves,
    deciles,
    glossary,
    heatmap,
    methods,
    paired,
    splits,
    step_gaps,
    tables,
    teacher,
)
from sdkernels.report.fields import as_number, lookup, model_name
from sdkernels.report.load import Run
from sdkernels.report.study import Study
from sdkernels.report.text import count, duration, escape, number, one_line

_SECRET = re.compile(r"(^|_)(key|secret|password|token)$", re.IGNORECASE)


def render(study: Study) -> str:
    """Return the whole report as one HTML document that needs nothing from outside."""
    runs = study.runs
    shown = heatmap.load(runs, study.problems)
    script = _template("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _fill(
        _template("report.html"),
        {
            "script_hash": digest,
            "title": escape(_title(runs)),
            "style": _template("report.css") + colours.rules(),
            "script": script,
            "lede": escape(_lede(runs)),
            "note": f'<p class="note" role="note">{escape(study.note)}</p>' if study.note else "",
            "problems": _problem_box(list(study.problems)),
            "facts": _facts(runs),
            "reading": _reading(runs),
            "methods": methods.section(runs, teacher.names(study.teacher)),
            "conditions": tables.conditions(runs),
            "curves": curves.section(runs),
            "accuracy": bars.accuracy(runs) + at_k.section(runs),
            "paired": paired.section(runs),
            "teacher": teacher.section(study.teacher),
            "verdicts": splits.by_verdict(runs),
            "deciles": deciles.section(runs),
            "kinds": splits.by_kind(runs),
            "markers": splits.markers(runs),
            "steps": step_gaps.section(runs),
            "heatmap": heatmap.section(runs, shown),
            "time": bars.time_per_step(runs),
            "glossary": glossary.section(),
            "settings": "".join(_settings(run) for run in runs),
        },
    )


def _template(name: str) -> str:
    return (resources.files("sdkernels.report") / "templates" / name).read_text(encoding="utf-8")


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return f"{runs[0].label}: one run"
    return (
        f"{count(len(runs), 'condition')}, one model, side by side"
        if len(_models(runs)) < 2
        else f"{len(runs)} runs"
    )


def _models(runs: Sequence[Run]) -> list[str]:
    """Return the names of the models that the runs used, each once, in order."""
    names = [one_line(name, 60) for run in runs if (name := model_name(run.summary))]
    return list(dict.fromkeys(names))


def _steps(runs: Sequence[Run]) -> str:
    steps = sorted({run.summary["steps"] for run in runs})
    return (
        count(steps[0], "step")
        if len(steps) == 1
        else f"{steps[0]:,} to {count(steps[-1], 'step')}"
    )


def _common(runs: Sequence[Run], *path: str) -> str | None:
    """Return the one value of all runs that have any, as text; None where they differ."""
    found = [value for run in runs if (value := lookup(run.summary, *path)) is not None]
    values = {json.dumps(value, sort_keys=True) for value in found}
    value = json.loads(values.pop()) if len(values) == 1 else None
    if value is None or value == {} or value == []:
        return None
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _data(runs: Sequence[Run]) -> str | None:
    data = _common(runs, "config", "dataset")
    return re.sub(r",(?=\S)", ", ", data) if data else None


def _lede(runs: Sequence[Run]) -> str:
    """Return what was done, in two or three plain sentences made only of what the runs recorded."""
    models, data = _models(runs), _data(runs)
    start = models[0] if len(models) == 1 else "A model"
    trained = f"{start} was trained for {_steps(runs)}" + (
        f" on {one_line(data, 120)}" if data else ""
    )
    if len(runs) > 1:
        said = [f"{trained}, once under each of {len(runs)} conditions."]
        differs = [
            words
            for name, words in (
                ("recipe", "in the recipe"),
                ("teacher", "in the teacher's weights"),
                ("context", "in what the teacher is told"),
            )
            if len({str(lookup(run.summary, name)) for run in runs} - {"None"}) > 1
        ]
        if differs:
            said.append(f"They differ {' and '.join(differs)}.")
        seed = _common(runs, "seed")
        if seed is not None and all(run.summary.get("seed") is not None for run in runs):
            said.append(f"All of them start from seed {one_line(seed)}.")
    else:
        said = [f"{trained} under the condition {runs[0].label}."]
    return " ".join(said)


def _facts(runs: Sequence[Run]) -> str:
    data = _data(runs)
    facts = [
        ("Model", ", ".join(_models(runs)) or None),
        ("Data", one_line(data, 120) if data else None),
        ("Steps", _steps(runs).split(" step")[0]),
        ("Seed", _common(runs, "seed")),
        ("Time", _time(runs)),
    ]
    items = (
        f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts
        if value is not None
    )
    return f'<dl class="facts">{"".join(items)}</dl>'


def _time(runs: Sequence[Run]) -> str | None:
    """Return the time of all runs together, and of how many where some did not record it."""
    found = [as_number(run.summary.get("seconds_total")) for run in runs]
    seconds = [value for value in found if value is not None and 0 < value < 1e12]
    if not seconds:
        return None
    of = f" in {len(seconds)} of {len(runs)} runs" if len(seconds) < len(runs) else " in all"
    return duration(sum(seconds)) + (of if len(runs) > 1 else "")


def _reading(runs: Sequence[Run]) -> str:
    """Return what the numbers say at a glance, each sentence only where its numbers exist."""
    said = []
    gaps = [
        (value, run)
        for run in runs
        if (value := as_number(lookup(run.summary, "last", "gap_abs"))) is not None
    ]
    gaps = [(value, run) for value, run in gaps if 0 <= value < 1e30]
    if len(gaps) > 1:
        most, least = max(gaps, key=lambda pair: pair[0]), min(gaps, key=lambda pair: pair[0])
        said.append(
            f"Teacher and student disagree most under {most[1].label} (mean size of the gap "
            f"{number(most[0])} nats per token in the last step), least under {least[1].label} "
            f"({number(least[0])})."
        )
    said.append(paired.compare_accuracy(runs))
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said if sentence)
    return f'<ul class="reading">{items}</ul>' if items else ""


def _problem_box(problems: list[str]) -> str:
    if not problems:
        return ""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    head = f"{count(len(problems), 'remark')} on what could not be read or shown"
    opened = " open" if len(problems) <= 12 else ""
    return f'<details class="problems"{opened}><summary>{head}</summary><ul>{items}</ul></details>'


def _settings(run: Run) -> str:
    known = {key: value for key in ("config", "versions") if (value := run.summary.get(key))}
    if not known:
        return ""
    shown = json.dumps(_without_secrets(known), indent=2, sort_keys=True)
    return f"<details><summary>{escape(run.label)}</summary><pre>{escape(shown)}</pre></details>"


def _without_secrets(value: Any) -> Any:
    """Return `value` without what looks like a credential: reports are made to be passed on."""
    if isinstance(value, dict):
        return {
            key: "(hidden)"
            if _SECRET.search(key) and isinstance(entry, str)
            else _without_secrets(entry)
            for key, entry in value.items()
        }
    return [_without_secrets(entry) for entry in value] if isinstance(value, list) else value


def _fill(template: str, values: dict[str, str]) -> str:
    """Replace each `{{name}}` once; what a value contains is never looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
