"""A study as `sdkernels demo` leaves it: six conditions, few steps, recorded rollouts. Made from a
seed.

Run `python tests/report/make_fixture.py FOLDER` to look at a report by eye.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

CONDITIONS = (
    ("grpo", "GRPO (binary reward)", "grpo", "none", "none", 0.0),
    ("reference_solution", "Reference solution", "opsd", "reference_solution", "frozen", 0.55),
    (
        "reference_without_thinking",
        "Reference without thinking",
        "opsd",
        "reference_without_thinking",
        "frozen",
        0.4,
    ),
    ("step_critique", "Step critique", "opsd", "step_critique", "frozen", 0.3),
    ("verifier_feedback", "Verifier feedback", "sdpo", "verifier_feedback", "frozen", 0.2),
    ("dasd", "DASD", "dasd", "reference_solution", "frozen", 0.55),
)
QUESTION = (
    "Mara baked 48 buns on Friday and half as many on Saturday. How many buns did she bake in all?"
)
RIGHT = (
    "Let me think step by step.\nOn Friday she baked 48 buns. On Saturday it was half as many, so "
    "48 / 2 = 24 buns. Wait, let me check that: 24 is half of 48, yes.\nTogether that makes "
    "48 + 24 = 72 buns.\n\nThe answer is 72."
)
WRONG = (
    "She baked 48 buns on Friday. On Saturday it was half as many, maybe 48 / 2 = 28.\nHmm, "
    "perhaps half means 48 / 2. So the total is 48 + 28 = 76 buns.\n\nThe answer is 76."
)
MARKERS = ("wait", "hmm", "perhaps", "maybe", "actually", "check")


def rollout(
    condition: str, step: int, example: str, *, success: bool, strength: float, seed: int
) -> dict[str, Any]:
    """Return one line of tokens.jsonl."""
    rng = random.Random(f"{seed} {example} {success}")
    words = _tokens(RIGHT if success else WRONG)
    entropy = [min(4.0, rng.expovariate(1.4 if word.strip().isdigit() else 0.8)) for word in words]
    logp = [-(0.2 + 0.7 * value) * rng.random() for value in entropy]
    plain = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    line: dict[str, Any] = {
        "condition": condition,
        "step": step,
        "example_id": example,
        "success": success,
        "prompt_text": plain,
        "teacher_prompt_text": None,
        "tokens": words,
        "logp": logp,
        "entropy": entropy,
        "marker": [word.strip(" ,.:").lower() in MARKERS for word in words],
        **dict.fromkeys(("teacher_logp", "gap", "teacher_entropy", "direction")),
    }
    if strength:
        hint = f"\n\nCorrect solution:\n{RIGHT}\n\nSolve the original question correctly."
        line["teacher_prompt_text"] = plain.replace("<|im_end|>", hint + "<|im_end|>", 1)
        # Words of doubt and wrong digits are what a teacher that knows the answer finds less
        # likely.
        pulls = [
            -2.2 if marked else -1.4 if "28" in word or "76" in word else 0.25
            for word, marked in zip(words, line["marker"], strict=True)
        ]
        line["teacher_logp"] = [
            min(-1e-4, lp + strength * (pull + rng.gauss(0, 0.35)))
            for lp, pull in zip(logp, pulls, strict=True)
        ]
        line["gap"] = [
            after - before for after, before in zip(line["teacher_logp"], logp, strict=True)
        ]
        line["teacher_entropy"] = [value * (1 - 0.5 * strength) for value in entropy]
    if condition == "dasd":
        tau = sorted(entropy)[int(0.8 * len(entropy))]
        line["direction"] = [math.tanh((tau - value) / 0.6) for value in entropy]
    return line


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    for char in text:
        glued = (
            tokens and char.isalnum() and (tokens[-1].strip(" ") == "" or tokens[-1][-1].isalnum())
        )
        if glued and tokens[-1] != "\n":
            tokens[-1] += char
        else:
            tokens.append(char)
    return tokens


def metrics(condition: str, step: int, strength: float, rng: random.Random) -> dict[str, Any]:
    """Return one line of metrics.jsonl."""
    taught = strength > 0
    progress = strength * (1 - math.exp(-(step - 1) / 6))
    seconds = {
        "rollout": 9.5 + rng.random(),
        "context": 4.2 if condition == "step_critique" else 0.01,
        "student_forward": 2.1,
        "teacher_forward": 2.6 if taught else None,
        "loss": 1.4 if taught else 0.7,
        "backward": 3.9,
        "optimizer": 0.6,
    }
    accuracy = rng.choice((0.25, 0.3125, 0.375)) if step > 1 else 0.3125
    return {
        "step": step,
        "loss": 0.09 * (1.2 * strength - 0.7 * progress) + 0.002 * rng.random()
        if taught
        else 0.0004 * rng.gauss(0, 1),
        "grad_norm": 0.4 + rng.random(),
        "learning_rate": 1e-5,
        "gap": -0.12 * strength + 0.08 * progress + rng.gauss(0, 0.004) if taught else None,
        "gap_abs": 0.5 * strength + rng.gauss(0, 0.01) if taught else None,
        "kl_teacher_student": 0.2 * strength if taught else None,
        "entropy": 0.86 - 0.2 * progress + rng.gauss(0, 0.01),
        "teacher_entropy": 0.86 * (1 - 0.4 * strength) + rng.gauss(0, 0.01) if taught else None,
        "direction": 0.41 if condition == "dasd" else None,
        "push_share": 0.2 + rng.gauss(0, 0.005) if condition == "dasd" else None,
        "signal_share": 0.875 if taught else None,
        "reward": accuracy,
        "accuracy": accuracy,
        "completion_length": 88 - 30 * progress + rng.gauss(0, 2) if step > 1 else 88.2,
        "truncated_share": 0.0625,
        "markers_per_1k": 6.2 - 7 * progress + (rng.gauss(0, 0.2) if step > 1 else 0),
        "marker_count": 9,
        "num_tokens": 1408 * step,
        "tokens_per_second": 62 + 8 * rng.random() - (18 if condition == "step_critique" else 0),
        "peak_memory_bytes": int((1.9 + 0.2 * strength) * 2**30),
        "seconds": seconds,
        **_analysis(condition, strength, rng),
    }


def _analysis(condition: str, strength: float, rng: random.Random) -> dict[str, Any]:
    """Return what a step tells by verdict, kind of token and entropy decile."""
    taught = strength > 0
    kinds = {"math": 0.4, "style": 2.4, "other": 0.8}
    gaps = [-strength * (0.02 + 0.05 * at * at / 10) + rng.gauss(0, 0.01) for at in range(10)]
    markers = {"per_response": 0.55, "per_1k": 6.2, "per_word": 0.011}
    values: dict[str, Any] = {
        "gap_correct": -0.05 * strength,
        "gap_wrong": -0.21 * strength,
        "gap_negative_share": 0.42 + 0.02 * rng.random(),
        "gap_negative_share_correct": 0.38,
        "gap_negative_share_wrong": 0.47,
        "teacher_entropy_top20": 2.1 * (1 - 0.4 * strength),
        **{f"kl_{kind}": 0.2 * size * strength for kind, size in kinds.items()},
        **{f"gap_abs_{kind}": 0.5 * size * strength for kind, size in kinds.items()},
        "gap_by_entropy_decile": gaps,
    }
    values = {key: value if taught else None for key, value in values.items()}
    gate = [math.tanh((7 - at) / 3) for at in range(10)]
    return values | {
        "entropy_top20": 2.3 + rng.gauss(0, 0.05),
        "math_share": 0.24,
        "style_share": 0.08,
        "other_share": 0.68,
        "completion_length_correct": 81.0,
        "completion_length_wrong": 93.0,
        "markers_per_1k_correct": 4.8,
        "markers_per_1k_wrong": 7.1,
        "same_output_share": 0.125,
        "distinct_answers": 2.75,
        **{f"markers_{rate}": value for rate, value in markers.items()},
        **{f"markers_published_{rate}": 1.4 * value for rate, value in markers.items()},
        "entropy_by_entropy_decile": [0.02 * at * at + 0.05 * at for at in range(10)],
        "direction_by_entropy_decile": gate if condition == "dasd" else None,
    }


def problems(rng: random.Random, gain: float) -> dict[str, Any]:
    """Return the evaluation of 32 problems, as before.json and after.json hold it."""
    return {
        "per_example": [
            {
                "id": f"eval-{at}",
                "accuracy": min(1.0, max(0.0, round(4 * (0.3 + gain + rng.gauss(0, 0.2))) / 4)),
                "completion_length": 86.0 - 60 * gain + rng.gauss(0, 9),
                "marker_count": max(0.0, 0.6 - 3 * gain + rng.gauss(0, 0.3)),
            }
            for at in range(32)
        ]
    }


def teacher_accuracy() -> dict[str, Any]:
    """Return what `sdkernels eval --context` leaves."""

    def entry(name: str, score: float, length: float, doubt: float, silent: int) -> dict[str, Any]:
        markers = {"per_response": doubt, "per_1k_tokens": 1000 * doubt / length}
        return {
            "context": name,
            "settings": {},
            "accuracy": score,
            "accuracy_ci": [score - 0.07, min(1.0, score + 0.06)],
            **({} if silent else {"pass_at": {"4": min(1.0, 1.5 * score)}, "maj_at_k": score}),
            "completion_length": length,
            "truncated_share": 0.03,
            "markers": markers,
            "markers_published": {"per_response": 1.3 * doubt},
            "entropy": 0.5 * (1.1 - score),
            "answers": 128 - silent,
            "without_context": silent,
            "change": None
            if name == "none"
            else {"difference": score - 0.3, "interval": [score - 0.36, score - 0.23]},
        }

    rows = (
        ("none", 0.3, 90.0, 0.6, 0),
        ("reference_solution", 0.95, 61.0, 0.1, 0),
        ("verifier_feedback", 0.34, 88.0, 0.5, 12),
    )
    return {
        "model": "smollm2",
        "n": 32,
        "k": 4,
        "contexts": [
            *(entry(*row) for row in rows),
            {"context": "hint", "settings": {}, "accuracy": None, "answers": 0},
        ],
    }


def make_run(
    folder: Path, row: tuple[str, str, str, str, str, float] = CONDITIONS[1], *, steps: int = 3
) -> Path:
    """Write one run folder for a row of `CONDITIONS` and return it."""
    name, title, recipe, context, teacher, strength = row
    rng = random.Random(name)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [metrics(name, step, strength, rng) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rollouts = [
        rollout(name, step, f"buns-{number}", success=number % 2 == 0, strength=strength, seed=step)
        for step in (1, steps)
        for number in range(3)
    ]
    (folder / "tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rollouts))
    for when, gain in (("before", 0.0), ("after", 0.1 * strength)):
        (folder / f"{when}.json").write_text(
            json.dumps(problems(random.Random(f"{when} {name if gain else ''}"), gain))
        )
    after = round(0.28 + 0.05 * rng.random(), 4)
    evaluation = {
        "completion_length": 86.0,
        "markers_per_1k": 6.1,
        "entropy": 0.86,
        "n": 32,
        "k": 4,
        "pass_at": {"1": 0.297, "2": 0.45, "4": 0.625},
        "maj_at_k": 0.344,
        "markers": {"per_response": 0.52, "per_1k_tokens": 6.1, "per_word": 0.011},
        "markers_published": {"per_response": 0.71, "per_1k_tokens": 8.3, "per_word": 0.015},
    }
    summary = {
        "condition": name,
        "title": title,
        "recipe": recipe,
        "context": context,
        "teacher": teacher,
        "model": "smollm2",
        "seed": 0,
        "steps": steps,
        "before": {"accuracy": 0.297, "accuracy_ci": [0.211, 0.383], **evaluation},
        "after": {"accuracy": after, "accuracy_ci": [after - 0.08, after + 0.09], **evaluation},
        "last": lines[-1],
        "tokens_per_second": lines[-1]["tokens_per_second"],
        "peak_memory_bytes": lines[-1]["peak_memory_bytes"],
        "seconds_total": 78.0,
        "versions": {"python": "3.11.2", "torch": "2.13.0", "sdkernels": "0.1.0"},
        "config": {
            "dataset": "reasoning_gym/chain_sum,basic_arithmetic,gsm_symbolic",
            "learning_rate": 1e-5,
        },
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def make_study(folder: Path, *, steps: int = 3) -> Path:
    """Write a study of all six conditions and return its folder."""
    for row in CONDITIONS:
        make_run(folder / row[0], row, steps=steps)
    (folder / "teacher_accuracy.json").write_text(json.dumps(teacher_accuracy()))
    return folder


if __name__ == "__main__":
    from sdkernels.report import build, terminal_table

    study = make_study(Path(sys.argv[1]), steps=int(sys.argv[2]) if len(sys.argv) > 2 else 3)
    print(build(study, order=[row[0] for row in CONDITIONS]))
    print(
        terminal_table(
            [json.loads((study / row[0] / "summary.json").read_text()) for row in CONDITIONS]
        )
    )
