"""The command line: the plan before a load, the table of architectures, and a sentence for every mistake."""

import json

import pytest
from checkpoints import save

from mobile_nb import load, plan
from mobile_nb.__main__ import main
from mobile_nb.demo import Demo
from mobile_nb.runtime import matrix
from mobile_nb.view.terminal import BLUE, ORANGE


@pytest.fixture
def folder(tmp_path):
    """A random model with the vocabulary and the tokenizer of the embedded one."""
    tokenizer = load("tiny-olmoe")[1]
    save(tmp_path / "model", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_plan_prints_what_the_function_says(folder, capsys):
    assert main(["plan", str(folder), "--slots", "3", "--context", "50", "--hardware", "t4-colab"]) == 0
    assert capsys.readouterr().out == f"{plan(str(folder), slots=3, context=50, hardware='t4-colab')}\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget-gb", "0.0000001"], "smallest budget is"),
        (["--slots", "0"], "slots must be"),
        (["--hardware", "abacus"], "abacus"),
        (["--dtype", "float33"], "dtype must be"),
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_is_one_sentence(folder, capsys, options, said):
    assert main(["plan", str(folder), *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mobile_nb: ") and said in err and err.count("\n") == 1


def test_the_demo_says_what_goes_where_before_it_loads_anything(folder, capsys, monkeypatch):
    command = ["demo", "--model", str(folder), "--slots", "2", "--prompt", "Tom has 3 apples.", "--max-new-tokens", "3"]
    assert main([*command, "--perfetto", str(folder / "run.json")]) == 0
    events = json.loads((folder / "run.json").read_text())["traceEvents"]
    assert len({event["pid"] for event in events}) == 3, "a process a system"
    shown = capsys.readouterr().out
    assert shown.startswith(str(plan(str(folder), slots=2))) and "MoBiLE" in shown

    def fails(*_, **__):
        raise ValueError("nothing was read")

    monkeypatch.setattr("mobile_nb.demo.load", fails)
    assert main(command) == 2
    shown = capsys.readouterr()
    assert "slots, 3 layers x 2" in shown.out and "nothing was read" in shown.err


@pytest.mark.parametrize("colour", [False, True])
def test_the_demo_credits_no_model_that_does_not_run(folder, colour):
    """The first token comes from the prompt pass, which is the big model's, but for the little model alone."""
    said = []
    Demo(
        model=str(folder), slots=2, prompt="Tom has 3 apples.", max_new_tokens=4, show=said.append, colour=colour
    ).run()
    alone, little, mobile = "".join(said).split("\n== ")[1:]
    marks = (ORANGE, BLUE) if colour else ("[", "\x1b")
    assert (marks[0] in alone) == colour and marks[0] not in little and marks[0] in mobile
    assert (marks[1] in little) == colour


def test_architectures_prints_a_table_and_the_reasons(capsys, tmp_path):
    assert main(["architectures", "olmoe", "llama", "--json", str(tmp_path / "rows.json")]) == 0
    shown = capsys.readouterr().out
    first, row = shown.splitlines()[0], shown.splitlines()[2]
    assert first.split()[:3] == ["architecture", "experts", "passed"]
    assert row.split()[:5] == ["olmoe", "4", "of", "8", "all"]
    assert "1 works, 1 refused" in shown and "llama: refused: LlamaForCausalLM has no `experts` module" in shown
    assert [row["verdict"] for row in json.loads((tmp_path / "rows.json").read_text())] == ["works", "refused"]


def test_a_family_that_is_wrong_makes_the_command_fail(capsys, monkeypatch):
    monkeypatch.setattr(matrix, "NEAR", 0.0)
    assert main(["architectures", "olmoe", "--markdown"]) == 1
    assert "1 wrong." in capsys.readouterr().out
