"""The parts that small functions are made of, as code and as words; knows nothing about how they are put together."""

from __future__ import annotations

import re
from random import Random

__all__ = ["conditions", "operations", "worked_out"]


def _condition(rng: Random, name: str) -> tuple[str, str]:
    """Code and words of a condition on a number."""
    k, m = rng.randint(2, 60), rng.randint(3, 9)
    kind = rng.randrange(7)
    if kind == 0:
        return f"{name} % 2 == 0", "even"
    if kind == 1:
        return f"{name} % 2 == 1", "odd"
    if kind == 2:
        return f"{name} > {k}", f"{rng.choice(('greater than', 'above', 'more than'))} {constant(rng, k)}"
    if kind == 3:
        return f"{name} < {k}", f"{rng.choice(('less than', 'below', 'smaller than'))} {constant(rng, k)}"
    if kind == 4:
        return f"{name} % {m} == 0", rng.choice((f"divisible by {m}", f"a multiple of {m}"))
    if kind == 5:
        return f"{name} % {m} != 0", f"not divisible by {m}"
    return f"{k} <= {name} <= {k + 3 * m}", f"from {constant(rng, k)} to {constant(rng, k + 3 * m)}"


def constant(rng: Random, value: int) -> str:
    """Words for a number: itself, or a product that the code has to work out."""
    pairs = [(a, value // a) for a in range(2, 10) if value % a == 0 and value > a]
    if pairs and rng.random() < 0.75:
        a, b = rng.choice(pairs)
        return f"{a} times {b}"
    return str(value)


def worked_out(rng: Random, spec: str) -> list[str]:
    """Lines of code that work out the products of a specification, in their order, and are true."""
    found = [(int(a), int(b)) for a, b in re.findall(r"(\d+) times (\d+)", spec)]
    return [rng.choice((f"    assert {a} * {b} == {a * b}", f"    assert {a * b} == {a} * {b}")) for a, b in found]


def _either_way(rng: Random, code: str) -> str:
    """A comparison with its sides as they are or exchanged."""
    found = re.fullmatch(r"(\w+) ([<>]) (\d+)", code)
    if found is None or rng.random() < 0.5:
        return code
    return f"{found[3]} {'<' if found[2] == '>' else '>'} {found[1]}"


def conditions(rng: Random, name: str, count: int) -> tuple[str, str]:
    """Code and words of up to two conditions."""
    code, words = _condition(rng, name)
    while count > 1:
        other, said = _condition(rng, name)
        if other.split()[1:3] != code.split()[1:3]:
            joint = rng.choice(("and", "or"))
            return f"{_either_way(rng, code)} {joint} {_either_way(rng, other)}", f"{words} {joint} {said}"
    return _either_way(rng, code), words


def _operation(rng: Random, before: str) -> tuple[str, str]:
    """Code and words of one operation on what the code `before` gives."""
    called = re.fullmatch(r"(max|min|len|\w\.count)\(.*\)", before)
    name = before if before.isidentifier() or called else f"({before})"
    k, m = rng.randint(2, 60), rng.randint(2, 9)
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(
            (f"{name} + {k}", f"{k} + {name}")
        ), f"{rng.choice(('plus', 'increased by'))} {constant(rng, k)}"
    if kind == 1:
        return f"{name} - {k}", f"{rng.choice(('minus', 'decreased by'))} {constant(rng, k)}"
    if kind == 2:
        return rng.choice((f"{name} * {m}", f"{m} * {name}")), rng.choice((f"times {m}", f"multiplied by {m}"))
    if kind == 3:
        return f"{name} // {m}", f"divided by {m}"
    if kind == 4:
        return f"{name} % {k}", f"modulo {constant(rng, k)}"
    if kind == 5:
        return rng.choice((f"max({before}, {k})", f"max({k}, {before})")), rng.choice(
            (f"at least {constant(rng, k)}", f"raised to {constant(rng, k)} if below")
        )
    if kind == 6:
        return rng.choice((f"min({before}, {k})", f"min({k}, {before})")), rng.choice(
            (f"at most {constant(rng, k)}", f"cut to {constant(rng, k)} if above")
        )
    return f"{k} - {name}", f"taken from {constant(rng, k)}"


def operations(rng: Random, name: str, count: int) -> tuple[str, str]:
    """Code and words of operations one after the other."""
    code, words = name, []
    for _ in range(count):
        code, said = _operation(rng, code)
        words.append(said)
    return code, " then ".join(words)
