"""One problem: a prompt, its answer and how a text is checked; knows nothing about where problems come from."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from random import Random

from . import functions, sandbox

__all__ = ["FunctionProblem", "Problem", "body"]

TESTS = 40  # hidden calls of a function of a list or string; three times as many of numbers


@dataclass(frozen=True)
class Problem:
    """One question with its answer: `solution` is the text that rightly follows `prompt`, `steps` its difficulty."""

    prompt: str
    answer: str
    steps: int
    solution: str

    longest = 128  # tokens that a text may need
    stop = ()  # texts at which writing may stop

    def check(self, text: str) -> bool:
        """Whether a generated continuation of the prompt gives exactly the right final answer; its first one counts."""
        found = re.search(r"\bThe answer is (\d+)\b", text)
        return found is not None and found.group(1) == self.answer


@dataclass(frozen=True)
class FunctionProblem(Problem):
    """A specification whose answer is code; any code that returns what it asks for is right. family: what it takes."""

    family: str

    def check(self, text: str) -> bool:
        """Whether the function that the text completes passes the hidden tests, in a process of its own."""
        return self.complaint(text) is None

    def complaint(self, text: str) -> str | None:
        """A sentence about what is wrong with a continuation of the prompt; None if nothing is."""
        if body(text) == body(self.solution):  # the very code that the tests' results come from
            return None
        return self.differs(sandbox.run(self.job(text)))

    def job(self, text: str) -> sandbox.Job:
        """The code with the hidden tests' arguments, for the sandbox."""
        return sandbox.Job(self.prompt + body(text), "f", self.tests())

    def tests(self) -> list[list]:
        """The hidden tests' arguments: many of the numbers lie beside those of the specification."""
        near = tuple(sorted({int(number) for number in re.findall(r"\d+", self.solution)}))
        return functions.arguments(self.family, Random(f"tests/{self.prompt}"), TESTS, near)

    def differs(self, results: list[str] | str) -> str | None:
        if isinstance(results, str):
            return results
        right = functions.call(self.prompt, self.solution)
        for arguments, result in zip(self.tests(), results, strict=True):
            expected = repr(right(*copy.deepcopy(arguments)))
            if result != expected:
                shown = ", ".join(map(repr, arguments))
                return f"f({shown}) gave {result.lstrip('!')[:200]}, but {expected} is right."
        return None


def body(text: str) -> str:
    """The lines of a function's body at the head of a continuation: up to the first line that is not indented."""
    lines = text.rstrip().split("\n")
    end = next((at for at, line in enumerate(lines) if at and line.strip() and line[0] not in " \t"), len(lines))
    return "\n".join(line.rstrip() for line in lines[:end]).rstrip()
