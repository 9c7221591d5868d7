"""The token heat-map: chosen rollouts, their tokens coloured by gap, entropy or direction.

Every token carries one class per view: `g3` is the third step towards "keep", `g-3` towards
"change". So the radio buttons above switch the colouring in CSS alone. The numbers behind the
tokens travel once per rollout as JSON; the script shows them on hover, tap or arrow keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sdkernels.report.curves import named
from sdkernels.report.fields import has_teacher
from sdkernels.report.load import Problems, RolloutRef, Run, TokenRecord, read_rollout
from sdkernels.report.step_gaps import step_gaps
from sdkernels.report.text import (
    MINUS,
    count,
    escape,
    number,
    one_line,
    script_json,
    typographic,
)

LEVELS = 8
MAX_PAGE_TOKENS = 80_000
MAX_PROMPT_CHARS = 20_000
_OPEN_CONDITIONS = 12


@dataclass(frozen=True)
class View:
    """One way to colour: a column, its CSS class prefix, its legend, what to say without it."""

    key: str
    prefix: str
    title: str
    unit: str
    diverging: bool
    low_word: str
    high_word: str
    absent: str


VIEWS = (
    View(
        "gap",
        "g",
        "Gap",
        "nats",
        True,
        "change: teacher finds it less likely",
        "keep: teacher finds it likelier",
        "No teacher was consulted here, so there is no gap. The student's entropy can be coloured "
        "instead.",
    ),
    View(
        "entropy",
        "s",
        "Student entropy",
        "nats",
        False,
        "sure",
        "undecided",
        "No student entropy was recorded.",
    ),
    View(
        "teacher_entropy",
        "t",
        "Teacher entropy",
        "nats",
        False,
        "sure",
        "undecided",
        "No teacher was consulted here, so there is no teacher entropy.",
    ),
    View(
        "direction",
        "d",
        "Direction",
        "",
        True,
        "push away from the teacher",
        "pull towards the teacher",
        "No gate here, so no token has a direction of its own.",
    ),
)


@dataclass(frozen=True)
class Shown:
    """One rollout on the page: `num_shown` of its tokens fit the page's budget."""

    run: int
    record: TokenRecord
    num_shown: int


def choose(runs: Sequence[Run]) -> list[tuple[int, RolloutRef]]:
    """Return up to four rollouts per run: at its first recorded step and at its last, a correct and
    a wrong one each, where there are both.

    The example that most runs recorded at their first step comes first, where the run has it: the
    same text under different teachers is what a reader can compare.
    """
    firsts: Counter[str] = Counter()
    for run in runs:
        first = min((ref.step for ref in run.rollouts), default=0)
        firsts.update({ref.example_id for ref in run.rollouts if ref.step == first})
    common = min(firsts, key=lambda example: (-firsts[example], example), default=None)
    chosen = []
    for index, run in enumerate(runs):
        if not run.rollouts:
            continue
        steps = [ref.step for ref in run.rollouts]
        for step in sorted({min(steps), max(steps)}):
            at_step = [ref for ref in run.rollouts if ref.step == step]
            at_step.sort(key=lambda ref: ref.example_id != common)
            found = {ref.success: ref for ref in reversed(at_step)}
            judged = [found[verdict] for verdict in (True, False) if verdict in found]
            chosen += [(index, ref) for ref in judged or at_step[:1]]
    return chosen


def load(runs: Sequence[Run], problems: Problems) -> list[Shown]:
    """Return the chosen rollouts, each cut to its share of the page's token budget."""
    chosen = choose(runs)
    share = MAX_PAGE_TOKENS // max(1, len(chosen))
    spare = sum(max(0, share - ref.num_tokens) for _, ref in chosen)
    long = sum(ref.num_tokens > share for _, ref in chosen)
    limit = share + spare // long if long else share
    shown = []
    for index, ref in chosen:
        record = read_rollout(runs[index], ref)
        if record.unreadable:
            problems.add(
                f"{runs[index].where}tokens.jsonl",
                f"{count(record.unreadable, 'value')} neither null nor finite; shown as missing",
                ref.line,
            )
        shown.append(Shown(index, record, min(limit, ref.num_tokens)))
    return shown


def scales(shown: Sequence[Shown]) -> dict[str, float]:
    """Return for each view the value that gets full colour: its 98th percentile on this page; under
    `step` the largest mean gap of a step.
    """
    found = {}
    for view in VIEWS:
        if view.key == "direction":
            found[view.key] = 1.0
            continue
        sizes = sorted(
            abs(value)
            for item in shown
            for value in (item.record.columns[view.key] or [])[: item.num_shown]
            if value is not None
        )
        top = sizes[int(0.98 * (len(sizes) - 1))] if sizes else 0.0
        found[view.key] = top or (sizes[-1] if sizes else 0.0) or 1.0
    gaps = [step.gap or 0.0 for item in shown for step in step_gaps(item.record)]
    found["step"] = max(map(abs, gaps), default=0.0) or 1.0
    return found


def section(runs: Sequence[Run], shown: Sequence[Shown]) -> str:
    """Return switch, legends and rollouts as HTML; views that nobody has are left out."""
    if not shown:
        return '<p class="empty">No rollout was recorded, so there are no tokens to show.</p>'
    views = [view for view in VIEWS if any(item.record.columns[view.key] for item in shown)]
    limits = scales(shown)
    judge = "what the teacher, which read more, makes of every token"
    told = judge if VIEWS[0] in views else "how sure the student was of every token"
    parts = [
        f"<p>The student wrote each text below. The colour says {told}.</p>",
        '<div class="heat">',
    ]
    for index, view in enumerate(views):
        checked = " checked" if index == 0 else ""
        parts.append(
            f'<input type="radio" name="view" id="view-{view.prefix}" class="switch"{checked}>'
        )
    buttons, verdicts = _filter(shown)
    parts.append(buttons)
    if views:
        labels = "".join(f'<label for="view-{view.prefix}">{view.title}</label>' for view in views)
        parts.append(f'<div class="bar"><div class="switches">{labels}</div>{verdicts}')
        parts += [_scale(view, limits[view.key]) for view in views]
        parts.append("</div>")
    parts.append(
        '<p class="foot">Words that voice doubt are <u>underlined</u>. Point at a token for its '
        "numbers, or click into a rollout and walk with the arrow keys. Step by step has the mean "
        "gap of each reasoning step: right and red, the teacher would keep it; left and blue, it "
        "would change it. All rollouts share one scale.</p>"
        '<noscript><p class="foot">Numbers per token need JavaScript; they also '
        "stand in tokens.jsonl.</p></noscript>"
    )
    by_run: dict[int, list[str]] = {}
    for at, item in enumerate(shown):
        by_run.setdefault(item.run, []).append(_rollout(item, at, runs[item.run], limits, views))
    for position, (index, rollouts) in enumerate(by_run.items()):
        opened = " open" if position < _OPEN_CONDITIONS else ""
        left = len(runs[index].rollouts) - len(rollouts)
        more = f"{count(left, 'more recorded rollout')} in {runs[index].where}tokens.jsonl"
        parts.append(
            f'<details class="condition"{opened}><summary>{named(index, runs)}</summary>'
            f"{''.join(rollouts)}"
            f"{f'<p class=foot>{escape(more)}</p>' if left else ''}</details>"
        )
    parts.append("</div>")
    return "\n".join(parts)


def _filter(shown: Sequence[Shown]) -> tuple[str, str]:
    """Return radio buttons and labels that keep only correct or only wrong rollouts; empty if there
    is nothing to tell apart.
    """
    if len({item.record.success for item in shown}) < 2:
        return "", ""
    buttons, labels = [], []
    for at, verdict in enumerate(("all", "correct", "wrong")):
        checked = " checked" if at == 0 else ""
        buttons.append(
            f'<input type="radio" name="only" id="only-{verdict}" class="switch"{checked}>'
        )
        labels.append(f'<label for="only-{verdict}">{verdict.capitalize()}</label>')
    return "".join(buttons), f'<div class="switches">{"".join(labels)}</div>'


def _scale(view: View, limit: float) -> str:
    top = f"{number(limit)} {view.unit}".strip()
    low = f"{MINUS}{top}" if view.diverging else "0"
    high = f"+{top}" if view.diverging else top
    steps = range(-LEVELS if view.diverging else 0, LEVELS + 1)
    cells = "".join(f'<i class="{view.prefix}{level}"></i>' for level in steps)
    return (
        f'<div class="scale for-{view.prefix}"><span class="end">{view.low_word}<b>{low}</b></span>'
        f'<span class="ramp" aria-hidden="true">{cells}</span>'
        f'<span class="end"><b>{high}</b>{view.high_word}</span></div>'
    )


def _rollout(
    item: Shown, at: int, run: Run, limits: dict[str, float], views: Sequence[View]
) -> str:
    record = item.record
    verdict = {True: "correct", False: "wrong", None: "not verified"}[record.success]
    tokens = "".join(_token(record, index, limits) for index in range(item.num_shown))
    name = escape(f"Step {record.step}, example {record.example_id}")
    absent = "".join(
        f'<p class="absent for-{view.prefix}">{view.absent}</p>'
        for view in views
        if record.columns[view.key] is None
    )
    cut = len(record.tokens) - item.num_shown
    left_out = f"{count(cut, 'more token')} left out to keep the page small."
    return (
        f'<article class="rollout is-{verdict.replace(" ", "-")}">'
        f'<h4>{name} <span class="verdict">{verdict}</span> '
        f"<small>{count(len(record.tokens), 'token')}</small></h4>"
        f"{_prompts(record, bool(has_teacher(run.summary)))}{absent}"
        f'<div class="tokens" tabindex="0" role="group" data-rollout="{at}" '
        f'aria-label="{name}: tokens, arrow keys walk through them">{tokens}</div>'
        f"{_steps(record, limits)}"
        f"{f'<p class=foot>{left_out}</p>' if cut else ''}"
        f'<script type="application/json" id="rollout-{at}">{_numbers(item)}</script></article>'
    )


def _steps(record: TokenRecord, limits: dict[str, float]) -> str:
    """Return the steps of the rollout with the mean gap of each as a bar, folded."""
    steps = [(step, step.gap) for step in step_gaps(record) if step.gap is not None]
    if len(steps) < 2:
        return ""
    top = limits["step"]
    rows = []
    for number_of, (step, gap) in enumerate(steps, 1):
        width = 50 * abs(gap) / top
        side = f"left:50%;width:{width:.1f}%" if gap > 0 else f"right:50%;width:{width:.1f}%"
        kind = "up" if gap > 0 else "down"
        sums = {True: "sums hold", False: "sums fail", None: ""}[step.holds]
        rows.append(
            f'<li><span class="nth">{number_of}</span><span class="gauge" aria-hidden="true">'
            f'<i class="{kind}" style="{side}"></i></span>'
            f'<span class="mean">{typographic(number(gap, signed=True))}</span>'
            f'<span class="said">{escape(one_line(step.text, 160))}'
            f"{f' <small>{sums}</small>' if sums else ''}</span></li>"
        )
    return (
        f'<details class="steps"><summary>Step by step: {len(steps)} steps</summary>'
        f"<ol>{''.join(rows)}</ol></details>"
    )


def _token(record: TokenRecord, at: int, limits: dict[str, float]) -> str:
    classes = []
    for view in VIEWS:
        column = record.columns[view.key]
        value = column[at] if column is not None else None
        if value is not None:
            level = round(LEVELS * max(-1.0, min(1.0, value / limits[view.key])))
            if level:
                classes.append(f"{view.prefix}{level if view.diverging else max(0, level)}")
    shown = escape(record.tokens[at]).replace("\n", '<b class="nl">\u21b5</b>\n')
    if not shown:
        # A character split over several tokens stands at the last; the others are still there.
        shown = '<b class="nl">\u25ab</b>'
    if record.marker[at]:
        word = shown.lstrip(" ")
        shown = f"{' ' * (len(shown) - len(word))}<u>{word}</u>"
    return f'<i class="{" ".join(classes)}">{shown}</i>' if classes else f"<i>{shown}</i>"


def _numbers(item: Shown) -> str:
    """Return the columns of the shown tokens as JSON, rounded to what a reader can use."""
    columns = {}
    for key, column in item.record.columns.items():
        if column is not None:
            columns[key] = [
                None if value is None else round(value, 4) for value in column[: item.num_shown]
            ]
    return script_json(columns)


def _prompts(record: TokenRecord, teacher: bool) -> str:
    """Return both prompts, folded, or a remark where there is no second one."""
    parts = []
    if record.prompt is not None:
        prompt = _cut(record.prompt)
        parts.append(f"<details><summary>Prompt</summary><pre>{prompt}</pre></details>")
    if record.teacher_prompt is not None and record.teacher_prompt != record.prompt:
        prompt = _teacher_prompt(record.prompt or "", record.teacher_prompt)
        parts.append(
            f"<details><summary>What the teacher read</summary><pre>{prompt}</pre></details>"
        )
    elif record.teacher_prompt is not None:
        parts.append("The teacher read the same prompt.")
    elif teacher:
        parts.append("The context had nothing to say on this rollout: no teacher signal.")
    return f'<div class="prompts">{"".join(parts)}</div>' if parts else ""


def _teacher_prompt(prompt: str, teacher_prompt: str) -> str:
    """Return the teacher's prompt with what the student's prompt lacks set off as `<mark>`."""
    head = _shared(prompt, teacher_prompt)
    if len(teacher_prompt) > MAX_PROMPT_CHARS or not head:
        return _cut(teacher_prompt)
    end = len(teacher_prompt) - _shared(prompt[head:][::-1], teacher_prompt[head:][::-1])
    return (
        f"{escape(teacher_prompt[:head])}<mark>{escape(teacher_prompt[head:end])}</mark>"
        f"{escape(teacher_prompt[end:])}"
    )


def _shared(first: str, second: str) -> int:
    """Return how many characters two texts have in common at their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


def _cut(prompt: str) -> str:
    left = len(prompt) - MAX_PROMPT_CHARS
    if left <= 0:
        return escape(prompt)
    return f"{escape(prompt[:MAX_PROMPT_CHARS])}\n... {count(left, 'more character')}"
