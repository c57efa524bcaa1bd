"""The word problems: disjoint splits, the same from the same seed, right arithmetic, and words that are one token."""

import re
import subprocess
import sys
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobile_nb.analysis import tasks
from mobile_nb.analysis.function_parts import operations

STEP = re.compile(r"(\d+(?: [-+*/] \d+)+) = (\d+)")
APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}


def chain(problem):
    """The equations of the working, read back from its text: ("12 + 7 - 3", "16")."""
    return tuple(STEP.findall(problem.solution))


def worked_out(left):
    """What the left side of an equation gives, from left to right."""
    first, *rest = left.split()
    value = int(first)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        value = APPLY[sign](value, int(number))
    return value


def asked(problem):
    """The number that the question asks for, looked up in the working or, where nothing changed, in the story."""
    question = problem.prompt.split(". ")[-1]
    if " need?" in question or ("coins does" in question and " gets " in problem.solution):
        return chain(problem)[-1][1]
    name = re.search(r"does (\w+) have\?", question).group(1)
    found = re.findall(rf" {name} (?:has|owns|keeps) [-+*/ 0-9]+ = (\d+)", problem.solution)
    item = re.search(r"How many (\w+)", question).group(1)
    return (found or re.findall(rf"{name} has (\d+) {item}\.", problem.prompt))[-1]


@pytest.fixture(scope="module")
def problems():
    return {split: tasks.load("word-problems", split=split, n=300, seed=3) for split in tasks.SPLITS}


def test_splits_share_no_chain_of_equations_and_no_prompt(problems):
    for kind in (chain, lambda p: p.prompt):
        train, validation, test = ({kind(p) for p in problems[split]} for split in tasks.SPLITS)
        assert not train & validation
        assert not train & test
        assert not validation & test


def test_the_chain_of_equations_decides_the_split(problems):
    for split in tasks.SPLITS:
        for problem in problems[split][:300]:
            written = ";".join(f"{left}={result}".replace(" ", "") for left, result in chain(problem))
            assert tasks.split_of(written) == split


def test_seeds_give_different_problems_and_the_same_seed_the_same():
    once = tasks.load("word-problems", n=50, seed=7)
    assert once == tasks.load("word-problems", n=50, seed=7)
    assert once[:20] == tasks.load("word-problems", n=20, seed=7)
    assert not {p.prompt for p in once} & {p.prompt for p in tasks.load("word-problems", n=50, seed=8)}


def test_another_process_with_another_hash_seed_makes_the_same_problem():
    code = "from mobile_nb.analysis import tasks; print(tasks.load('word-problems', n=1)[0].prompt)"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {tasks.load("word-problems", n=1)[0].prompt + "\n"}


def test_problems_ignore_and_leave_alone_the_global_random_state():
    import random

    random.seed(1)
    state = random.getstate()
    first = tasks.load("word-problems", n=5)
    assert random.getstate() == state
    random.seed(2)
    assert tasks.load("word-problems", n=5) == first


def test_the_working_is_right_and_stays_within_0_to_99(problems):
    for problem in problems["test"]:
        steps = chain(problem)
        assert len(steps) == problem.steps
        for left, result in steps:
            assert worked_out(left) == int(result)
        assert asked(problem) == problem.answer
        assert all(0 <= int(number) <= 99 for number in re.findall(r"\d+", problem.prompt + problem.solution))


def test_every_number_of_the_working_was_given_or_worked_out_before(problems):
    words = {"twice": 2, "doubles": 2, "as many": 2, "half": 2, "three times": 3, "four times": 4, "five times": 5}
    words |= {"triples": 3, "as before": 3, "third": 3}
    for problem in problems["test"]:
        known = {int(number) for number in re.findall(r"\d+", problem.prompt)}
        known |= {number for word, number in words.items() if word in problem.prompt}
        for left, result in chain(problem):
            assert {int(number) for number in re.findall(r"\d+", left)} <= known, problem
            known.add(int(result))


def test_all_lengths_and_operations_occur(problems):
    assert {p.steps for p in problems["train"]} == {2, 3, 4, 5, 6, 7, 8}
    assert {sign for p in problems["train"] for left, _ in chain(p) for sign in left.split()[1::2]} == set("+-*/")
    assert any(len(left.split()) == 5 for p in problems["train"] for left, _ in chain(p))
    assert len({p.answer for p in problems["train"]}) > 70


def test_the_checker_accepts_the_solution_and_nothing_else(problems):
    for problem in problems["test"][:300]:
        assert problem.check(problem.solution)
        wrong = str((int(problem.answer) + 1) % 100)
        assert not problem.check(problem.solution.replace(f"answer is {problem.answer}.", f"answer is {wrong}."))
        assert not problem.check(
            problem.solution.replace(f"answer is {problem.answer}.", f"answer is {problem.answer}0.")
        )
        assert not problem.check(f"The answer is {wrong}. The answer is {problem.answer}.")


@pytest.mark.parametrize("text", ["", "42", "The answer is", "The answer is .", "\x00", "answer answer " * 500])
def test_the_checker_rejects_garbage(problems, text):
    assert not problems["test"][0].check(text)


def test_only_the_opening_word_of_a_step_is_free(problems):
    for problem in problems["test"][:200]:
        lines = re.findall(r" (?:So|Then|Now) [^.]+\.", problem.solution)
        assert len(lines) == problem.steps


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"name": "riddles"},
            "there is no task named 'riddles'; the tasks are: small-functions, word-problems, gsm8k, humaneval",
        ),
        (
            {"name": "word-problems", "split": "dev"},
            "there is no split named 'dev'; the splits are: train, validation, test",
        ),
        ({"name": "word-problems", "n": 0}, "n must be a whole number of at least 1, but it is 0"),
        ({"name": "word-problems", "n": 2.5}, "n must be a whole number of at least 1, but it is 2.5"),
        ({"name": "word-problems", "n": True}, "n must be a whole number of at least 1, but it is True"),
    ],
)
def test_a_wrong_argument_gets_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tasks.load(**arguments)


SAID = (
    (r"plus (.+)|increased by (.+)", lambda v, k: v + k),
    (r"minus (.+)|decreased by (.+)", lambda v, k: v - k),
    (r"multiplied by (\d+)|times (\d+)", lambda v, k: v * k),
    (r"divided by (.+)", lambda v, k: v // k),
    (r"modulo (.+)", lambda v, k: v % k),
    (r"at least (.+)|raised to (.+) if below", max),
    (r"at most (.+)|cut to (.+) if above", min),
    (r"taken from (.+)", lambda v, k: k - v),
)


def told(words, value):
    """What the words of some operations, one after the other, make of a value."""
    for said in words.split(" then "):
        number, apply = next(
            (next(filter(None, found.groups())), apply)
            for pattern, apply in SAID
            if (found := re.fullmatch(pattern, said))
        )
        first, _, second = number.partition(" times ")
        value = apply(value, int(first) * int(second or 1))
    return value


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), value=st.integers(-50, 99))
def test_the_code_of_several_operations_does_what_their_words_say(seed, count, value):
    code, words = operations(Random(seed), "x", count)
    assert eval(code, {"x": value, "max": max, "min": min}) == told(words, value), (code, words)
