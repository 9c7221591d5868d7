"""Whether a response is correct. Model output is parsed and compared, never executed.

The verifier family comes from `Example.task`:

* `number`: one number, by value (`answers.same_number`).
* `math`: number or text if that already agrees, else LaTeX by math-verify in another process.
* `string`: the same words, whatever their case, spacing and surrounding punctuation.
* `choice`: the letter of an option.
* `reasoning_gym/<task>`: by the kind of answer of that task, see `GYM_KINDS`. No scorer of
  reasoning-gym is called: several of them `eval` the answer (n_queens, spiral_matrix, ...), and
  many give part of the reward for an answer that is wrong.
* empty: `choice`, `number`, `math` or `string`, by the form of the reference answer.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from sdkernels.contexts import Example, strip_thinking
from sdkernels.train import answers
from sdkernels.train.math_check import checker

GYM_PREFIX = "reasoning_gym/"
GYM_KINDS = {
    "number": (
        "aiw basic_arithmetic chain_sum coin_flip count_bits count_primes decimal_arithmetic "
        "decimal_chain_sum gcd gsm_symbolic largest_island lcm leg_counting letter_counting "
        "number_format number_sequence products rectangle_count simple_equations simple_geometry"
    ),
    "string": (
        "base_conversion caesar_cipher family_relationships isomorphic_strings ransom_note "
        "spell_backward syllogism time_intervals zebra_puzzles"
    ),
    "fraction": "dice fraction_simplification",
    "factors": "prime_factorization",
    "hex": "bitwise_arithmetic",
    "list": "word_sorting",
    "any": "calendar_arithmetic",
}
_KIND_OF_TASK = {name: kind for kind, tasks in GYM_KINDS.items() for name in tasks.split()}
GYM_TASKS = frozenset(_KIND_OF_TASK)
KINDS = ("number", "math", "string", "choice")

# A lower-case letter needs more than a space after it: "a cat" chooses nothing.
_CHOICE = re.compile(r"[\[(\"*$\s]*(?:([A-J])(?=[\])\".:*$\s]|$)|([a-j])(?=[\])\".:*$]|$))")
_LATEX_TEXT = re.compile(r"\\text\s?\{([^{}]*)\}")
_STARTS_AS_NUMBER = re.compile(r"[\s$€£¥+\-−.\\]*(?:\d|[dt]?frac)")
SHOWN_CHARS = 80


@dataclass(frozen=True)
class Verdict:
    """The verifier's word on one response. `reward` is 1.0 or 0.0.

    `extracted` is the answer that was found in the response, `feedback` a text for the student
    that never states the right answer.
    """

    correct: bool
    reward: float
    extracted: str | None
    feedback: str


def verify(text: str, example: Example, *, time_limit_seconds: float = 5.0) -> Verdict:
    r"""Judge the response `text` to `example`.

    Think blocks are removed, then the answer is looked for after the last `Answer:`, in the last
    `\boxed{}`, after "answer is", and for numbers at last in the last number of the response.
    `time_limit_seconds` bounds the comparison of `math`.

    Raises:
        ValueError: the example has no answer, one that its task can't read, or an unknown task.
    """
    kind = kind_of(example)
    visible = strip_thinking(text)
    if text.strip() and not visible:
        return _wrong(None, "The response ended before its thinking did, so it has no answer.")
    extraction = answers.extract_answer(visible, numeric=kind in ("number", "fraction"))
    if extraction is None or not extraction.value:
        return _wrong(
            None,
            "No final answer was found: the response has no line of the form `Answer: <value>`.",
        )
    reference = (example.answer or "").strip()
    problem = _compare(kind, extraction.value, reference, time_limit_seconds)
    if problem is None:
        feedback = "The final answer was checked, and it is correct."
        return Verdict(True, 1.0, extraction.value, feedback)
    shown = _shown(extraction.value)
    return _wrong(
        extraction.value,
        f"The final answer was read from {extraction.where} as `{shown}`, {problem}.",
    )


def read_answer(text: str) -> str | None:
    """The final answer of a response where there is no reference to compare it with, or None."""
    extraction = answers.extract_answer(strip_thinking(text), numeric=True)
    return None if extraction is None else extraction.value or None


def vote_key(extracted: str | None, example: Example) -> str | None:
    """A form of an extracted answer in which equal answers are equal, for majority votes.

    Numbers by value, the letter of a choice, otherwise the words without case and punctuation;
    None where there is no answer.
    """
    if extracted is None:
        return None
    kind = kind_of(example)
    if kind in ("number", "math"):
        number = answers.parse_number(extracted)
        if number is not None:
            return f"{number.value}%" if number.percent else str(number.value)
    if kind == "choice":
        return _choice(extracted) or answers.plain_text(extracted)
    return answers.plain_text(extracted)


def kind_of(example: Example) -> str:
    """How the answers of `example` are compared; checks that its reference can be.

    Raises:
        ValueError: no answer, an unknown task, or a reference answer that the task can't read.
    """
    where = example.metadata.get("row") or f"example {example.id!r}"
    reference = (example.answer or "").strip()
    if not reference:
        raise ValueError(f"{where}: can't be verified, because it has no `answer`")
    kind = _kind_of_task(example.task, where)
    if kind == "any":
        kind = _infer(reference)
    readers = {
        "number": answers.parse_number,
        "fraction": answers.parse_fraction,
        "factors": answers.parse_factors,
        "hex": answers.parse_hex,
    }
    if kind in readers and readers[kind](reference) is None:
        raise ValueError(
            f"{where}: the reference answer {_shown(reference)!r} is no {kind}, which task "
            f"{example.task or kind!r} needs; correct it, or set task to one of {', '.join(KINDS)}"
        )
    return kind


def _kind_of_task(task: str, where: str) -> str:
    if not task:
        return "any"
    if task in KINDS:
        return task
    name = task.removeprefix(GYM_PREFIX)
    if task.startswith(GYM_PREFIX) and name in _KIND_OF_TASK:
        return _KIND_OF_TASK[name]
    known = [*KINDS, *(GYM_PREFIX + name for name in _KIND_OF_TASK)]
    near = difflib.get_close_matches(task, known)
    guess = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(
        f"{where}: there is no verifier for task {task!r}.{guess} Known: {', '.join(known)}"
    )


def _infer(reference: str) -> str:
    if re.fullmatch(r"[A-J]", reference):
        return "choice"
    if _STARTS_AS_NUMBER.match(reference) and answers.parse_number(reference) is not None:
        return "number"  # "5 apples", but not "Apollo 11"
    return "math" if re.search(r"[\\^=*/+(){}\d]", reference) else "string"


def _compare(kind: str, answer: str, reference: str, limit_seconds: float) -> str | None:
    """None where the answer is right, else what is wrong with it, for the feedback."""
    if kind == "number":
        return _compare_numbers(answer, reference)
    if kind == "math":
        return _compare_math(answer, reference, limit_seconds)
    if kind == "fraction":
        return _compare_fractions(answer, reference)
    if kind == "choice":
        letter = _choice(answer)
        if letter is None:
            return "which is not the letter of an option"
        return None if letter == reference.upper() else "and it is not correct"
    if kind == "list":
        ours, theirs = ([answers.plain_text(x) for x in t.split(",")] for t in (answer, reference))
        return None if ours == theirs else "and it is not correct"
    readers = {
        "factors": answers.parse_factors,
        "hex": answers.parse_hex,
        "string": answers.plain_text,
    }
    found = readers[kind](answer)
    if found is None:
        forms = {"factors": "a product of prime factors", "hex": "a hexadecimal number"}
        return f"which is not {forms[kind]}"
    return None if found == readers[kind](reference) else "and it is not correct"


def _choice(answer: str) -> str | None:
    match = _CHOICE.match(_LATEX_TEXT.sub(r"\1", answer))
    return match.group().strip('[("*$ \t').upper() if match else None


def _compare_numbers(answer: str, reference: str) -> str | None:
    found, wanted = answers.parse_number(answer), answers.parse_number(reference)
    if found is None or wanted is None:
        return "which does not state one number"
    return None if answers.same_number(found, wanted) else "and it is not correct"


def _compare_fractions(answer: str, reference: str) -> str | None:
    found, wanted = answers.parse_fraction(answer), answers.parse_fraction(reference)
    if found is None or wanted is None:
        return "which is not a fraction of two whole numbers"
    return None if found == wanted else "and it is not correct or not in lowest terms"


def _compare_math(answer: str, reference: str, limit_seconds: float) -> str | None:
    found, wanted = answers.parse_number(answer), answers.parse_number(reference)
    if found is not None and wanted is not None:
        return None if answers.same_number(found, wanted) else "and it is not correct"
    plain = "".join(answer.split()).strip("$")
    if plain == "".join(reference.split()).strip("$"):
        return None
    outcome = checker.compare(_math(reference), _math(answer), limit_seconds=limit_seconds)
    return {
        "equal": None,
        "different": "and it is not correct",
        "unreadable": "which can't be read as a mathematical expression",
        "timeout": f"and checking it took longer than the time limit of {limit_seconds:g} s",
        "crash": "and checking it took too much memory",
    }[outcome]


def _math(text: str) -> str:
    return text.strip().strip("$").replace("\n", " ").strip()


def _wrong(extracted: str | None, feedback: str) -> Verdict:
    return Verdict(False, 0.0, extracted, feedback)


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."
