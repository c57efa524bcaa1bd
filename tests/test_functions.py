"""Small functions: disjoint splits, right code, and a checker that goes by behaviour and contains what it runs."""

import ast
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobile_nb.analysis import functions, sandbox, tasks

LOOPS = "def f(x):\n    while True:\n        pass"


@pytest.fixture(scope="module")
def problems():
    return {split: tasks.load("small-functions", split=split, n=250, seed=3) for split in tasks.SPLITS}


def behaviour(problem):
    """What the right code returns for the fixed arguments of its family."""
    function = functions.call(problem.prompt, problem.solution)
    rng = functions.Random(f"probes/{problem.family}")
    return [repr(function(*each)) for each in functions.arguments(problem.family, rng, 24)]


def test_no_two_splits_share_a_behaviour_or_a_specification(problems):
    for kind in (lambda p: (p.family, *behaviour(p)), lambda p: p.prompt):
        train, validation, test = ({kind(p) for p in problems[split]} for split in tasks.SPLITS)
        assert not train & validation
        assert not train & test
        assert not validation & test


def test_there_are_many_different_functions_of_every_kind(problems):
    train = problems["train"]
    assert len({p.prompt for p in train}) > 0.95 * len(train)
    assert len({tuple(behaviour(p)) for p in train}) > 0.9 * len(train)
    assert {p.family for p in train} == {"list", "numbers", "string"}
    assert {p.steps for p in train} >= {2, 3, 4, 5}


def test_the_same_seed_gives_the_same_problems_in_another_process():
    code = "from mobile_nb.analysis import tasks; p = tasks.load('small-functions', n=1)[0]; print(p.prompt, p.tests())"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    first = tasks.load("small-functions", n=1)[0]
    assert said == {f"{first.prompt} {first.tests()}\n"}


def test_every_solution_parses_and_obeys_the_strict_rules(problems):
    for problem in problems["test"]:
        assert sandbox.STRICT.complaint(problem.prompt + problem.solution) is None
        assert problem.check(problem.solution)


def test_other_code_that_does_the_same_is_right(problems):
    same = [p.solution.replace("\n    ", "\n    q = 0\n    ", 1) for p in problems["test"]]
    assert all(tasks.check_all(problems["test"], same))


def test_other_code_that_does_something_else_is_wrong(problems):
    wrong = [re.sub(r"return ([^\n]*)", r"return [\1, 1]", p.solution) for p in problems["test"]]
    assert not any(tasks.check_all(problems["test"], wrong))


def test_a_changed_number_is_noticed_nearly_always(problems):
    """Not always: a bound may be out of reach, and then the changed function is the same function."""
    changed, of = [], []
    for problem in problems["validation"]:
        number = [n for n in re.findall(r"\b\d+\b", problem.solution) if int(n) > 2]
        if number:
            last = rf"\b{number[-1]}\b(?!.*\b{number[-1]}\b)"
            changed.append(re.sub(last, str(int(number[-1]) + 1), problem.solution, flags=re.DOTALL))
            of.append(problem)
    assert sum(tasks.check_all(of, changed)) < 0.12 * len(of)


def test_checking_many_equals_checking_one_by_one(problems):
    some = problems["test"][:6]
    texts = [some[0].solution + " ", some[1].solution, "", "\n    return 1", "\n    return f(", LOOPS[9:]]
    slow = [False, True, False, False, False, False]
    slow[0] = some[0].check(texts[0])
    assert tasks.check_all(some, texts) == slow
    assert slow[0] is True


def test_text_after_the_function_does_not_count(problems):
    problem = problems["test"][0]
    assert problem.check(problem.solution + "\n\nprint(f(1))\nand so on")


@pytest.mark.parametrize("text", ["", "garbage", "\n  return 1", "\n    return", "\x00", "\n    return (" * 300])
def test_garbage_is_wrong_and_gets_a_sentence(problems, text):
    assert not problems["test"][0].check(text)
    assert problems["test"][0].complaint(text).endswith((".", "right."))


@settings(max_examples=60)
@given(st.text())
def test_any_text_gets_an_answer(problems, text):
    assert body_is_stable(text)
    complaint = sandbox.STRICT.complaint(problems["test"][0].prompt + tasks.body(text))
    assert complaint is None or complaint.endswith(".")


def body_is_stable(text):
    return tasks.body(tasks.body(text)) == tasks.body(text)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import os\ndef f(x): return 1", "holds a Import"),
        ("from os import path\ndef f(x): return 1", "holds a ImportFrom"),
        ("def f(x): return x.__class__", "uses the name '__class__'"),
        ("def f(x): return __import__('os')", "uses the name '__import__'"),
        ("def f(x): return '{0}'.format(x)", "uses the attribute 'format'"),
        ("def f(x): return (i for i in x).gi_frame", "uses the attribute 'gi_frame'"),
        ("class A: pass\ndef f(x): return 1", "holds a ClassDef"),
        ("def f(x):\n    try:\n        return 1\n    except: pass", "holds a Try"),
        ("def f(x) return", "is no Python (SyntaxError)"),
        ("f = 1", "defines no function 'f'"),
        ("f = 1 / 0", "raised ZeroDivisionError when it was defined"),
    ],
)
def test_what_is_not_allowed_gets_a_sentence(source, says):
    assert says in sandbox.run(sandbox.Job(source, "f", [[1]]))


@pytest.mark.parametrize("name", ["open", "eval", "exec", "input", "getattr", "globals", "vars", "print", "breakpoint"])
def test_builtins_outside_the_white_list_are_not_there(name):
    assert sandbox.run(sandbox.Job(f"def f(x): return {name}(x)", "f", [["1"]])) == ["!NameError"]


def test_the_process_refuses_what_the_rules_let_through():
    """The second fence, without the first: an audit hook stands behind the white lists."""
    open_rules = sandbox.Rules(
        frozenset(sandbox.LENIENT.nodes), None, (*sandbox.STRICT.names, "open"), ("os", "socket")
    )
    for call in ("open('x', 'w')", "os.listdir('.')", "os.system('true')", "socket.socket()", "os.remove('x')"):
        job = sandbox.Job(f"import os, socket\ndef f(x):\n    return {call}", "f", [[1]])
        assert sandbox.run(job, rules=open_rules) == ["!PermissionError"], call


def test_endless_and_greedy_code_is_ended():
    started = time.perf_counter()
    assert "did not end within 1 seconds" in sandbox.run(sandbox.Job(LOOPS, "f", [[1]]), seconds=1)
    assert time.perf_counter() - started < 20
    assert sandbox.run(sandbox.Job("def f(x): return f(x)", "f", [[1]]), seconds=20) == ["!RecursionError"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited where the system lets it be")
def test_memory_is_limited():
    assert sandbox.run(sandbox.Job("def f(x): return 'a' * 10 ** 11", "f", [[1]]), seconds=20) == ["!MemoryError"]


def test_one_bad_job_does_not_spoil_the_others():
    good = sandbox.Job("def f(x): return x + 1", "f", [[1], [2]])
    answers = sandbox.run_all([good, sandbox.Job(LOOPS, "f", [[1]]), good], seconds=3)
    assert answers[0] == answers[2] == ["2", "3"]
    assert "did not end" in answers[1]


def test_the_childs_script_imports_nothing_of_the_package():
    tree = ast.parse(sandbox._CHILD.read_text(encoding="utf-8"))
    found = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert found <= set(sys.stdlib_module_names)
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
