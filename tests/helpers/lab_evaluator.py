"""An evaluator of problems and traces that shares no code with the lab: it reads words."""

from collections.abc import Sequence


def words(text: str) -> list[str]:
    return text.split()


def result_of(operator: str, operand: int, value: int) -> int:
    """By repeated counting instead of the lab's formulas."""
    if operator == "+":
        return int(str(value + operand)[-2:])
    if operator == "-":
        return value - operand if value >= operand else value - operand + 100
    if operator == "*":
        return sum(value for _ in range(operand)) - 100 * (value * operand // 100)
    text = f"{value:02d}"
    return sum(int(text[1]) for _ in range(operand)) + int(text[0])


def read_problem(prompt: Sequence[str]) -> tuple[int, list[tuple[str, int]]]:
    """Start and operations of a prompt, `solve 4 7 ; + 3 6 ... think`."""
    text = " ".join(prompt)
    body = text.removeprefix("solve ")
    for word in ("think", "hint", "target", "critique", "solution"):
        body = body.split(f" {word}")[0]
    start, *steps = body.split(" ; ")
    return number(start), [(step[0], number(step[1:])) for step in steps]


def answer_of(prompt: Sequence[str]) -> int:
    value, steps = read_problem(prompt)
    for operator, operand in steps:
        value = result_of(operator, operand, value)
    return value


def faults(prompt: Sequence[str], response: Sequence[str]) -> list[str]:
    """What is wrong with the form or the checks of a response; guesses may be wrong.

    Every equation of a check must be true (a one-digit right side: modulo 10), every `so` must give
    the right result, and the answer must be the last result.
    """
    value, steps = read_problem(prompt)
    *parts, answer = " ".join(response).split(" ; ")
    found = []
    if len(parts) != len(steps):
        found.append(f"{len(parts)} steps instead of {len(steps)}")
    for part, (operator, operand) in zip(parts, steps, strict=False):
        head, _, rest = part.partition(" wait")
        asked, guess = head.split(" = ")
        if (asked[0], number(asked[1:])) != (operator, operand):
            found.append(f"{asked} instead of {operator} {operand}")
        right = result_of(operator, operand, value)
        value = number(guess)
        if rest:
            check, result = rest.split("so ")
            found += [f"false: {line}" for line in check.split(" , ") if not is_true(line)]
            if number(result) != right:
                found.append(f"{part}: should end with {right}")
            value = number(result)
    if number(answer.removeprefix("answer ")) != value:
        found.append(f"{answer} after {value}")
    return found


def is_true(line: str) -> bool:
    """Whether an equation of a check holds; an empty check does."""
    if not line.strip():
        return True
    left, right = line.split(" = ")
    compact = left.replace(" ", "")
    for sign in "+-*":
        compact = compact.replace(sign, f" {sign} ")
    first, *rest = compact.split()
    total = int(first)
    for sign, operand in zip(rest[::2], rest[1::2], strict=True):
        total = {
            "+": total + int(operand),
            "-": total - int(operand),
            "*": total * int(operand),
        }[sign]
    digits = right.split()
    return total % 10 ** len(digits) == int("".join(digits))


def number(text: str) -> int:
    return int(text.replace(" ", ""))
