"""Comparing expressions in another process: right answers, and everything that can go wrong."""

import builtins
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdkernels.train import math_check
from sdkernels.train.math_check import MathChecker


@pytest.fixture(scope="module")
def checker() -> Iterator[MathChecker]:
    checker = MathChecker()
    yield checker
    checker.close()


@pytest.mark.parametrize(
    ("reference", "answer", "outcome"),
    [
        ("x(x+2)", "x^2+2x", "equal"),
        ("\\frac{\\sqrt2}{2}", "\\frac{1}{\\sqrt{2}}", "equal"),
        ("\\sin^2 x+\\cos^2 x", "1", "equal"),
        ("\\{1,2\\}", "\\{2,1\\}", "equal"),
        ("1.5\\times10^{-3}", "0.0015", "equal"),
        ("x=5", "5", "equal"),
        ("[0,1)", "(0,1)", "different"),
        ("(1,2)", "(2,1)", "different"),
        ("\\pi", "3.14", "different"),
        ("\\pi", "", "unreadable"),
        ("\\pi", "\\frac{", "unreadable"),
    ],
)
def test_compare(checker: MathChecker, reference: str, answer: str, outcome: str) -> None:
    assert checker.compare(reference, answer, limit_seconds=20) == outcome


def test_code_in_an_answer_is_not_run(checker: MathChecker, tmp_path: Path) -> None:
    target = tmp_path / "written"
    code = f"open('{target}','w').write('x')"
    for answer in (
        code,
        f"\\text{{{code}}}",
        f"\\operatorname{{eval}}({code})",
        f"__import__('os').system('touch {target}')",
        f"x_{{{code}}}",
        f"5 if {code} else 3",
    ):
        assert checker.compare("\\pi", answer, limit_seconds=20) != "equal"
    assert not target.exists()


@pytest.mark.parametrize("answer", ["9^{9^{9^{9}}}", "100000000!"])
def test_a_hard_expression_is_given_up_and_the_next_one_works(
    checker: MathChecker, answer: str
) -> None:
    start = time.perf_counter()
    assert checker.compare("\\pi", answer, limit_seconds=0.5) == "timeout"
    assert time.perf_counter() - start < 5
    assert checker.compare("\\pi", "\\pi", limit_seconds=20) == "equal"


def test_a_worker_that_dies_is_replaced(checker: MathChecker) -> None:
    assert checker.compare("\\pi", "\\pi", limit_seconds=20) == "equal"
    process = checker._process
    assert process is not None
    process.kill()
    outcome = checker.compare("\\pi", "\\pi", limit_seconds=20)
    assert outcome in ("crash", "equal")  # it may have been noticed before or after asking
    assert checker.compare("\\pi", "\\pi", limit_seconds=20) == "equal"


def test_threads_get_their_own_answers(checker: MathChecker) -> None:
    outcomes = {}

    def ask(number: int) -> None:
        answer = "\\sqrt{4}" if number % 2 else "\\sqrt{5}"
        outcomes[number] = checker.compare("2", answer, limit_seconds=20)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {n: "equal" if n % 2 else "different" for n in range(8)}


def test_a_worker_that_cannot_start_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker = tmp_path / "math_worker.py"
    worker.write_text('print(\'{"ready": false, "error": "No module named math_verify"}\')')
    monkeypatch.setattr(math_check, "__file__", str(tmp_path / "math_check.py"))
    with pytest.raises(RuntimeError, match=r"No module named math_verify\. Is math-verify inst"):
        MathChecker().compare("1", "1", limit_seconds=1)


def test_the_sources_call_no_eval() -> None:
    folder = Path(math_check.__file__).parent
    for name in ("answers.py", "verify.py", "math_check.py", "math_worker.py", "gym.py"):
        text = (folder / name).read_text(encoding="utf-8")
        for banned in ("eval(", "exec(", "literal_eval", "sympify(", "parse_expr("):
            assert banned not in text, (name, banned)
    assert callable(builtins.eval)
