"""Runs code that a model wrote, in a process of its own that can do little else; knows nothing about tasks or models.

Three fences stand behind one another. The code's syntax tree may hold only what the rules list. It then runs in a fresh
interpreter whose builtins are a white list, and in which every audited act (opening a file, a socket, a process, an
import) raises. That process is killed after a time limit and, where the system has resource limits, held to little
memory and no files. What comes back is text, compared here. This contains mistakes of a model; it is not built
against an attacker.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .functions import ALLOWED

__all__ = ["LENIENT", "STRICT", "Job", "Rules", "run", "run_all"]

TOGETHER = 64  # jobs in one process: starting it takes longer than they do

_CHILD = Path(__file__).with_name("sandbox_child.py")
_NODES = (
    "Module FunctionDef arguments arg Return Assign AugAssign AnnAssign For While If Expr Break Continue Pass BoolOp "
    "BinOp UnaryOp Lambda IfExp Dict Set ListComp SetComp DictComp GeneratorExp Compare Call Constant Attribute "
    "Subscript Starred Name List Tuple Slice comprehension keyword Load Store Del Delete And Or Add Sub Mult Div Mod "
    "Pow FloorDiv Invert Not UAdd USub Eq NotEq Lt LtE Gt GtE Is IsNot In NotIn BitAnd BitOr BitXor LShift RShift "
    "JoinedStr FormattedValue NamedExpr Assert"
).split()
_MORE_NODES = (
    "ClassDef Import ImportFrom alias Try ExceptHandler Raise With withitem Global Nonlocal Yield YieldFrom "
    "TypeAlias Match match_case MatchValue MatchAs MatchOr MatchSequence"
).split()
_METHODS = (
    "append extend insert pop remove sort reverse index count copy clear upper lower title capitalize swapcase strip "
    "lstrip rstrip split rsplit splitlines join replace startswith endswith find rfind isdigit isalpha isalnum isupper "
    "islower isspace zfill center ljust rjust partition keys values items get setdefault update add discard union "
    "intersection difference issubset issuperset bit_length"
).split()
_FRAMES = ("_", "gi_", "cr_", "ag_", "tb_", "f_", "co_", "func_", "format_map", "mro")  # ways out of a white list
_SYSTEM = frozenset("sys os modules builtins io abc subprocess importlib".split())
_ERRORS = (
    "ArithmeticError AssertionError AttributeError Exception IndexError KeyError LookupError NameError "
    "NotImplementedError OverflowError RecursionError RuntimeError StopIteration TypeError ValueError ZeroDivisionError"
).split()
_MORE_NAMES = (
    "bin bytes callable complex frozenset hash hex iter next object oct ord print property repr slice staticmethod "
    "classmethod super type __build_class__ NotImplemented Ellipsis"
).split()
_MODULES = (
    "bisect collections copy datetime decimal fractions functools hashlib heapq itertools math operator random re "
    "statistics string typing"
).split()


@dataclass(frozen=True)
class Rules:
    """What code may be made of.

    nodes: kinds of syntax.   methods: the only attributes, None for any that is not private or a way to a frame.
    names: builtins.   modules: what it may import.
    """

    nodes: frozenset[str]
    methods: frozenset[str] | None
    names: tuple[str, ...]
    modules: tuple[str, ...] = ()

    def complaint(self, source: str) -> str | None:
        """A sentence about the first thing that is not allowed; None if nothing is."""
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
            return f"it is no Python ({type(problem).__name__})."
        for node in ast.walk(tree):
            kind = type(node).__name__
            if kind not in self.nodes:
                return f"it holds a {kind}, which is not allowed."
            for field in ("id", "attr", "arg", "name"):
                word = getattr(node, field, None)
                if isinstance(word, str) and word.startswith("__") and word != "__init__":
                    return f"it uses the name {word!r}, which is not allowed."
            if isinstance(node, ast.Attribute) and not self._takes(node.attr):
                return f"it uses the attribute {node.attr!r}, which is not allowed."
            wanted = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            wanted += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in wanted:
                if module.split(".")[0] not in self.modules:
                    return f"it imports {module!r}, which is not allowed."
        return None

    def _takes(self, attribute: str) -> bool:
        if self.methods is not None:
            return attribute in self.methods
        return not attribute.startswith(_FRAMES) and attribute not in _SYSTEM


STRICT = Rules(frozenset(_NODES), frozenset(_METHODS), tuple(ALLOWED))
LENIENT = Rules(
    frozenset(_NODES + _MORE_NODES), None, tuple(dict.fromkeys([*ALLOWED, *_ERRORS, *_MORE_NAMES])), tuple(_MODULES)
)


@dataclass(frozen=True)
class Job:
    """Code, the name of the function in it, and the lists of arguments to call it with (JSON values)."""

    source: str
    name: str
    calls: Sequence[list]


def run(job: Job, *, rules: Rules = STRICT, seconds: float = 5.0, megabytes: int = 512) -> list[str] | str:
    """What the job's function returns for each list of arguments, as `repr`; a sentence if it did not get so far.

    A call that raised gives the exception's name after "!". The time limit is wall clock, for all calls together.
    """
    return run_all([job], rules=rules, seconds=seconds, megabytes=megabytes)[0]


def run_all(
    jobs: Sequence[Job], *, rules: Rules = STRICT, seconds: float = 5.0, megabytes: int = 512
) -> list[list[str] | str]:
    """`run` for many jobs, up to TOGETHER in a process; where one of them spoils it, each gets a process of its own."""
    answers: list[list[str] | str | None] = [rules.complaint(job.source) for job in jobs]
    open_ones = [at for at, answer in enumerate(answers) if answer is None]
    for begin in range(0, len(open_ones), TOGETHER):
        part = open_ones[begin : begin + TOGETHER]
        said = _process([jobs[at] for at in part], rules, seconds, megabytes)
        if isinstance(said, str) and len(part) > 1:
            said = [_process([jobs[at]], rules, seconds, megabytes) for at in part]
            said = [one if isinstance(one, str) else one[0] for one in said]
        for at, answer in zip(part, [said] if isinstance(said, str) else said, strict=True):
            answers[at] = answer
    return answers


def _process(jobs: list[Job], rules: Rules, seconds: float, megabytes: int) -> list | str:
    """The answers of one process, or a sentence about its end."""
    order = {
        "jobs": [[job.source, job.name, list(job.calls)] for job in jobs], "names": rules.names,
        "modules": rules.modules, "seconds": seconds, "megabytes": megabytes,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-B", str(_CHILD)],
                input=json.dumps(order).encode(),
                capture_output=True,
                timeout=seconds,
                cwd=empty,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except subprocess.TimeoutExpired:
            return f"it did not end within {seconds:g} seconds."
    try:
        return json.loads(done.stdout)
    except ValueError:
        return f"its process ended without an answer (exit status {done.returncode})."
