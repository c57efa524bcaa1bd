"""The rooms of the library: imports go downward only, heavy packages stay in their rooms, and importing it is free.

Read from the source with `ast`, so that imports inside functions and under TYPE_CHECKING count as well.
"""

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mobile_nb"
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))

TOP = "the top"  # __init__ and __main__: they may import everything, and nothing imports them
FLOORS = {
    **dict.fromkeys(("vocabulary", "clock", "hardware", "costs", "trace", "routing", "files", "html"), 0),
    "policies": 1,
    "memory": 2,
    "model": 3,
    **dict.fromkeys(("runtime", "systems"), 4),
    "analysis": 5,
    "view": 6,
    **dict.fromkeys(("demo", "comparing", "replaying", "bench"), 7),
    TOP: 8,
}
ONLY_IN = {
    "transformers": {"model", "runtime"},
    "plotly": {"view"},
    "ipywidgets": {"view"},
}
WITHOUT_TORCH = (
    "tasks metrics spans perfetto foresight problem real functions function_parts word_problems".split()
    + "sandbox sandbox_child".split()
)
NO_TORCH_AT_ALL = tuple(f"mobile_nb.analysis.{name}" for name in WITHOUT_TORCH)
NO_TORCH_ON_IMPORT = {"vocabulary", "clock", "hardware", "costs", "trace", "routing", "files", "html", "policies", TOP}
LONGEST = 250  # lines


@dataclass(frozen=True)
class Import:
    """One imported module, by its absolute name, and whether importing the file is enough to run the import."""

    module: str
    line: int
    at_once: bool


def name_of(path):
    """mobile_nb/memory/link.py -> mobile_nb.memory.link, and a package's __init__ -> the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    """The room that a module of the library belongs to: its name below mobile_nb, or the top."""
    parts = module.split(".")
    return TOP if len(parts) == 1 or parts[1] == "__main__" else parts[1]


def imports_of(source, module, is_package):
    """Every import in `source`, dots resolved against `module`; `from mobile_nb import x` names mobile_nb.x."""
    found = []

    def visit(node, at_once):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, is_package)
            names = [f"{base}.{alias.name}" for alias in node.names] if base == PACKAGE else [base]
            found.extend(Import(name, node.lineno, at_once) for name in names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                visit(child, False)
            for child in node.orelse:
                visit(child, at_once)
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                visit(child, at_once and not inside)

    visit(ast.parse(source), True)
    return found


def absolute(node, module, is_package):
    """The module that an ImportFrom names, without leading dots."""
    if not node.level:
        return node.module
    parts = module.split(".")
    here = parts[: len(parts) - node.level + is_package]
    return ".".join([*here, node.module] if node.module else here)


def complaints(source, module, is_package=False):
    """Sentences, one for each import of `module` that the floors or the rooms of heavy packages forbid."""
    room, found = room_of(module), []
    for each in imports_of(source, module, is_package):
        where, package = f"{module}, line {each.line}", each.module.split(".")[0]
        if package == PACKAGE:
            other = room_of(each.module)
            # A name that is no room is a public name of the package itself: only the top may go through there.
            if FLOORS.get(other, FLOORS[TOP]) > FLOORS[room]:
                found.append(f"{where}: {room} imports {each.module}, which is above it.")
        elif package in ONLY_IN and room not in ONLY_IN[package]:
            found.append(f"{where}: {package} is imported, which belongs to {' and '.join(sorted(ONLY_IN[package]))}.")
        elif package == "torch" and module in NO_TORCH_AT_ALL:
            found.append(f"{where}: torch is imported in a module that works without it.")
        elif package == "torch" and each.at_once and room in NO_TORCH_ON_IMPORT:
            found.append(f"{where}: torch is imported on import; {room} may do so inside a function at most.")
    return found


each_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


@each_module
def test_module_lives_in_a_room_with_a_floor(path):
    room = room_of(name_of(path))
    assert room in FLOORS, f"{room} is in no room: give it a floor in tests/test_rooms.py and in the README's drawing."


@each_module
def test_imports_go_downward_and_heavy_packages_stay_in_their_rooms(path):
    found = complaints(path.read_text(encoding="utf-8"), name_of(path), path.name == "__init__.py")
    assert not found, "\n".join(found)


@each_module
def test_module_says_what_it_is_and_is_short(path):
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), f"{path.name} needs a docstring that says what it does."
    lines = len(source.splitlines())
    assert lines <= LONGEST, f"{path.name} has {lines} lines, and {LONGEST} is the most: split it by idea."


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        ("mobile_nb.policies.evict", "from mobile_nb.memory import cache", 1),
        ("mobile_nb.policies.evict", "from ..memory.cache import Cache", 1),
        ("mobile_nb.policies.evict", "from .. import memory", 1),
        ("mobile_nb.policies.evict", "import mobile_nb", 1),
        ("mobile_nb.policies.evict", "from mobile_nb import load", 1),
        ("mobile_nb.policies.evict", "def late():\n    from ..view import figures", 1),
        ("mobile_nb.policies.evict", "if TYPE_CHECKING:\n    from ..view import figures", 1),
        ("mobile_nb.policies.evict", "from . import keep\nfrom ..vocabulary import Step\nimport numpy", 0),
        ("mobile_nb.policies.evict", "class Policy:\n    import torch", 1),
        ("mobile_nb.hardware", "def measure():\n    import torch", 0),
        ("mobile_nb.hardware", "if TYPE_CHECKING:\n    import torch", 0),
        ("mobile_nb.analysis.tasks", "def late():\n    import torch.nn", 1),
        ("mobile_nb.analysis.tasks", "def late():\n    from transformers import pipeline", 1),
        ("mobile_nb.analysis.sweep", "import plotly.graph_objects as go", 1),
        ("mobile_nb.view.figures", "import plotly.graph_objects as go\nfrom ..analysis import metrics", 0),
        ("mobile_nb.__main__", "from . import load\nfrom .view import figures", 0),
    ],
)
def test_the_walk_sees_what_it_should(module, source, count):
    assert len(complaints(source, module)) == count


def test_a_package_resolves_its_dots_one_level_higher():
    assert [each.module for each in imports_of("from .cache import Cache", "mobile_nb.memory", True)] == [
        "mobile_nb.memory.cache"
    ]


def python(*arguments):
    """A fresh interpreter in the checkout; returns the finished process, its output as text."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COVERAGE", "COV_"))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=120
    )


def test_importing_the_library_loads_nothing_heavy():
    heavy = ("torch", "transformers", "pandas", "plotly", "ipywidgets", "pyarrow", "datasets")
    code = f"import sys, {PACKAGE}; print(*[name for name in {heavy!r} if name in sys.modules])"
    assert python("-c", code).stdout.split() == []


def test_importing_the_library_takes_less_than_150_milliseconds():
    seconds = []
    for _ in range(3):  # the best of three: the first may still be compiling, and machines have other work
        lines = python("-X", "importtime", "-c", f"import {PACKAGE}").stderr.splitlines()
        (line,) = [line for line in lines if line.split("|")[-1].strip() == PACKAGE]
        seconds.append(int(line.split("|")[1]) / 1e6)
    assert min(seconds) < 0.15, f"import {PACKAGE} took {min(seconds):.3f} s at best."
