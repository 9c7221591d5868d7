"""Worked solutions and hints for the arithmetic and word problems of reasoning-gym.

reasoning-gym gives an answer, but (with one exception) no way to it. Each writer below redoes the
problem from the task's metadata. A solution has a thinking part, with a check by another way, and
a clean part, so that contexts with and without thinking differ. An entry whose recorded answer does
not follow gets None; upstream has a few (`0 = 0` to be solved for x, for example).
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdkernels.train.answers import parse_number, same_number


@dataclass(frozen=True)
class Worked:
    """A problem worked out: equations or sentences without end stop, one a step.

    `check` confirms the result by another way. `method` is a hint without numbers, for problems
    whose first step is their last.
    """

    steps: list[str]
    check: str
    method: str

    def solution(self, answer: str) -> str:
        """The solution text, thinking first, ending in the answer line."""
        thinking = ". ".join(self.steps)
        clean = "\n".join(f"Step {i}: {step}" for i, step in enumerate(self.steps, start=1))
        return (
            f"<think>\n{self.method} {thinking}. Wait, let me check this another way. "
            f"{self.check}. That agrees, so it is likely right.\n</think>\n"
            f"{clean}\nAnswer: {answer}"
        )

    def hint(self, answer: str) -> str | None:
        """The method and the first step, or less if that would state the answer."""
        for text in (f"{self.method} First step: {self.steps[0]}.", self.method):
            if not _mentions(text, answer):
                return text
        return None


Writer = Callable[[dict[str, Any]], "Worked | None"]


def worked_solution(task: str, entry: dict[str, Any]) -> Worked | None:
    """The entry of `task` worked out, None where its recorded answer does not follow.

    Raises:
        KeyError: there is no writer for `task` (see `WRITERS`).
    """
    return WRITERS[task](entry)


def _chain_sum(entry: dict[str, Any]) -> Worked | None:
    terms = entry["metadata"]["expression"].split()
    total = int(terms[0])
    steps = [] if len(terms) > 1 else [f"There is one number, {total}"]
    added = [total]
    taken: list[int] = []
    for sign, term in zip(terms[1::2], map(int, terms[2::2]), strict=True):
        before, total = total, total + term if sign == "+" else total - term
        steps.append(f"{before} {sign} {_operand(term)} = {total}")
        (added if sign == "+" else taken).append(term)
    check = f"What is added makes {sum(added)}, what is taken away makes {sum(taken)}, "
    check += f"and {sum(added)} - {_operand(sum(taken))} = {total}"
    method = "Work from left to right, one operation at a time."
    return Worked(steps, check, method) if _is(total, entry) else None


_OPERATORS: dict[type[ast.operator], tuple[str, Callable[[int, int], int]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.floordiv),
}


def _basic_arithmetic(entry: dict[str, Any]) -> Worked | None:
    steps: list[str] = []
    last: tuple[int, str, int, int] | None = None

    def value(node: ast.expr) -> int:
        nonlocal last
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATORS:
            raise ValueError(f"unexpected expression: {ast.dump(node)}")
        left, right = value(node.left), value(node.right)
        sign, apply = _OPERATORS[type(node.op)]
        if sign == "/" and left % right:
            raise ArithmeticError("the division leaves a remainder")
        result = apply(left, right)
        steps.append(f"{left} {sign} {_operand(right)} = {result}")
        last = (left, sign, right, result)
        return result

    try:
        result = value(ast.parse(entry["metadata"]["expression"].strip(), mode="eval").body)
    except (ArithmeticError, ValueError):
        return None
    steps = steps or [f"There is one number, {result}"]
    method = "Do the parentheses first, then products and quotients, then sums and differences."
    return Worked(steps, _undo(last), method) if _is(result, entry) else None


def _undo(last: tuple[int, str, int, int] | None) -> str:
    """The last operation backwards."""
    if last is None:
        return "There is nothing to compute"
    left, sign, right, result = last
    if sign == "*" and right == 0:
        return "A product with 0 is 0"
    back = {"+": "-", "-": "+", "*": "/", "/": "*"}[sign]
    return f"Undoing the last step, {result} {back} {_operand(right)} = {left}, as before"


def _leg_counting(entry: dict[str, Any]) -> Worked | None:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    steps = []
    parts = []
    by_legs: dict[int, int] = {}
    for animal, count in entry["metadata"]["animals"].items():
        legs = ANIMALS[animal]
        by_legs[legs] = by_legs.get(legs, 0) + count
        parts.append(count * legs)
        steps.append(f"{animal}: {count} * {legs} = {count * legs} legs")
    total = sum(parts)
    if len(parts) > 1:
        steps.append(f"{' + '.join(map(str, parts))} = {total}")
    groups = " + ".join(f"{count} * {legs}" for legs, count in sorted(by_legs.items()))
    check = f"Putting animals with equally many legs together gives {groups} = {total}"
    method = "For each kind of animal multiply its number by its legs, and add that up."
    return Worked(steps, check, method) if _is(total, entry) else None


def _products(entry: dict[str, Any]) -> Worked | None:
    factors = [int(part) for part in entry["metadata"]["expression"].split("*")]
    product = factors[0]
    steps = [] if len(factors) > 1 else [f"There is one factor, {product}"]
    for factor in factors[1:]:
        digits = str(abs(factor))
        places = [int(d) * 10 ** (len(digits) - 1 - i) for i, d in enumerate(digits) if d != "0"]
        parts = [product * place * (-1 if factor < 0 else 1) for place in places]
        if len(parts) > 1:
            signed = [-place if factor < 0 else place for place in places]
            steps += [
                f"{product} * {_operand(place)} = {part}"
                for place, part in zip(signed, parts, strict=True)
            ]
            steps.append(f"{' + '.join(map(_operand, parts))} = {sum(parts)}")
        else:
            steps.append(f"{product} * {_operand(factor)} = {product * factor}")
        product *= factor
    remainders = [factor % 9 for factor in factors]
    check = (
        f"Divided by 9 the factors leave {' and '.join(map(str, remainders))}, whose product "
        f"leaves {math.prod(remainders) % 9}, and {product} leaves {product % 9}"
    )
    method = "Multiply by the places of the second factor one by one, and add the parts."
    return Worked(steps, check, method) if _is(product, entry) else None


def _gcd_steps(numbers: list[int]) -> tuple[int, list[str]]:
    """Euclid's algorithm over all the numbers, from the left."""
    result = numbers[0]
    steps = []
    for number in numbers[1:]:
        before = result
        a, b = max(before, number), min(before, number)
        while b:
            steps.append(f"{a} = {a // b} * {b} + {a % b}")
            a, b = b, a % b
        result = a
        steps.append(f"So the greatest common divisor of {before} and {number} is {result}")
    return result, steps or [f"There is one number, {result}"]


def _gcd(entry: dict[str, Any]) -> Worked | None:
    numbers = entry["metadata"]["numbers"]
    result, steps = _gcd_steps(numbers)
    quotients = [number // result for number in numbers]
    check = f"Dividing by {result} gives {_and(quotients)}, which have no common divisor above 1"
    method = "Use Euclid's algorithm: divide, and go on with the divisor and the remainder."
    return Worked(steps, check, method) if _is(result, entry) else None


def _lcm(entry: dict[str, Any]) -> Worked | None:
    numbers = entry["metadata"]["numbers"]
    result = numbers[0]
    steps = [] if len(numbers) > 1 else [f"There is one number, {result}"]
    for number in numbers[1:]:
        divisor, more = _gcd_steps([result, number])
        before, result = result, result * number // divisor
        steps += [*more, f"{before} * {number} / {divisor} = {result}"]
    quotients = [f"{result} / {number} = {result // number}" for number in numbers]
    check = f"{_and(quotients)}, all of them whole"
    method = "Find the greatest common divisor, and divide the product of the numbers by it."
    return Worked(steps, check, method) if _is(result, entry) else None


def _fraction_simplification(entry: dict[str, Any]) -> Worked | None:
    data = entry["metadata"]
    top, bottom = data["numerator"], data["denominator"]
    divisor, steps = _gcd_steps([top, bottom])
    low = (top // divisor, bottom // divisor)
    steps += [f"{top} / {divisor} = {low[0]}", f"{bottom} / {divisor} = {low[1]}"]
    check = f"Multiplying crosswise, {top} * {low[1]} = {top * low[1]} = {bottom} * {low[0]}"
    method = "Divide numerator and denominator by their greatest common divisor."
    right = low == (data["simplified_numerator"], data["simplified_denominator"])
    return Worked(steps, check, method) if right else None


def _simple_equations(entry: dict[str, Any]) -> Worked | None:
    variable = entry["metadata"]["variable"]
    left, right = entry["metadata"]["equation"].split("=")
    slope, constant = _linear(ast.parse(left.strip(), mode="eval").body)
    target = int(right)
    if slope == 0 or (target - constant) % slope:
        return None
    root = (target - constant) // slope
    steps = []
    if constant:
        verb, sign = ("Subtract", "-") if constant > 0 else ("Add", "+")
        size = abs(constant)
        steps.append(
            f"{verb} {size} on both sides: {slope}*{variable} = {target} {sign} {size} "
            f"= {target - constant}"
        )
    steps.append(
        f"Divide both sides by {slope}: {variable} = {target - constant} / {_operand(slope)} "
        f"= {root}"
    )
    check = f"Putting it in, {slope} * {_operand(root)} + {_operand(constant)} = {target}"
    method = f"Bring the numbers to one side, then divide by what stands before {variable}."
    return Worked(steps, check, method) if _is(root, entry) else None


def _linear(node: ast.expr) -> tuple[int, int]:
    """(slope, constant) of a linear expression in its one variable."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return 0, node.value
    if isinstance(node, ast.Name):
        return 1, 0
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        slope, constant = _linear(node.operand)
        return -slope, -constant
    if isinstance(node, ast.BinOp):
        (a, b), (c, d) = _linear(node.left), _linear(node.right)
        if isinstance(node.op, ast.Add):
            return a + c, b + d
        if isinstance(node.op, ast.Sub):
            return a - c, b - d
        if isinstance(node.op, ast.Mult) and a * c == 0:
            return a * d + b * c, b * d
    raise ValueError(f"not linear: {ast.dump(node)}")


def _gsm_symbolic(entry: dict[str, Any]) -> Worked | None:
    """From the working that upstream gives, as its last line `#### <answer>` agrees."""
    working, _, result = entry["metadata"]["answer_cot"].rpartition("####")
    steps = [re.sub(r"^\d+\.\s+", "", line.strip()).rstrip(".:") for line in working.splitlines()]
    steps = [step for step in steps if step]
    found, recorded = parse_number(result), parse_number(entry["answer"])
    if found is None or recorded is None or not same_number(found, recorded) or not steps:
        return None
    sentences = re.split(r"(?<=[.?!])\s+", entry["question"].strip())
    asked = next((s for s in reversed(sentences) if s.endswith("?")), sentences[-1])
    check = f'The question was "{asked}", and the last step says just that'
    method = "Take the facts one after the other, and write down what each of them gives."
    return Worked(steps, check, method)


WRITERS: dict[str, Writer] = {
    "basic_arithmetic": _basic_arithmetic,
    "chain_sum": _chain_sum,
    "fraction_simplification": _fraction_simplification,
    "gcd": _gcd,
    "gsm_symbolic": _gsm_symbolic,
    "lcm": _lcm,
    "leg_counting": _leg_counting,
    "products": _products,
    "simple_equations": _simple_equations,
}


def _is(value: int, entry: dict[str, Any]) -> bool:
    return str(value) == entry["answer"]


def _operand(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


def _and(items: list[Any]) -> str:
    return " and ".join(map(str, items))


def _mentions(text: str, answer: str) -> bool:
    """Whether `answer` stands in `text` as a number or word of its own."""
    return bool(re.search(rf"(?<![\w.]){re.escape(answer)}(?![\w]|\.\d)", text))
