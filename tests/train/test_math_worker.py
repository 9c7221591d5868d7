"""The worker as a program: its protocol, and what it refuses to evaluate."""

import json
import subprocess
import sys
from pathlib import Path

import sdkernels.train

WORKER = Path(sdkernels.train.__file__).with_name("math_worker.py")


def test_one_reply_a_line_until_the_input_ends() -> None:
    requests = [
        {"reference": "x+1", "answer": "1+x", "limit_seconds": 20},
        {"reference": "x+1", "answer": "x", "limit_seconds": 20},
        {"reference": "x+1", "answer": "", "limit_seconds": 20},
    ]
    done = subprocess.run(
        [sys.executable, str(WORKER)],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"ready": True},
        {"parsed": True, "equal": True},
        {"parsed": True, "equal": False},
        {"parsed": False, "equal": False},
    ]


def test_it_loads_neither_torch_nor_this_package_and_sympy_evaluates_no_string() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(WORKER.parent)!r})
import math_worker
compare = math_worker._load()
assert compare("2.5", "5/2")["equal"]
assert "torch" not in sys.modules and "sdkernels" not in sys.modules
from sympy import sympify
assert sympify("12") == 12 and sympify("1.5") == 1.5
try:
    sympify("__import__('os').getpid()")
except Exception as error:
    print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("refused:")
    assert "not a number" in done.stdout
