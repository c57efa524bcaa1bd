"""The comparison of all systems: what a row says, what is measured once, and that an interrupted one goes on."""

import json

import pytest

from mobile_nb import MobileError
from mobile_nb.__main__ import main
from mobile_nb.analysis import comparison, literature, world
from mobile_nb.analysis.comparison import FULL, cells, summary, table


def row(system, share, ms, accuracy, *, n=40, task="word-problems", same=0.5, exact=False, ms_few=None):
    return {
        "world": "w", "task": task, "system": system, "share": share, "n": n, "n_timed": n, "accuracy": accuracy,
        "low": 0.0, "high": 1.0, "difference": accuracy - 0.9, "half_width": 0.1, "same_text": same, "exact": exact,
        "fallback_ratio": 0.1, "ms": ms, "ms_few": ms_few or ms,
    }  # fmt: skip


def test_speed_and_front_are_within_a_world_a_task_and_a_share():
    frame = table([row(FULL, 0.25, 40.0, 0.9), row("drop", 0.25, 10.0, 0.0), row("SMoE", 0.25, 20.0, 0.95),
                   row(FULL, 0.5, 30.0, 0.9), row("drop", 0.5, 10.0, 0.95)])  # fmt: skip
    assert frame.speed_up.tolist() == [1, 4, 2, 1, 3]
    assert frame.front.tolist() == [False, True, True, False, True]


def test_what_does_not_depend_on_the_device_keeps_the_answers_of_most_problems():
    frame = table([
        row(FULL, 0.25, 40.0, 0.9), row("MoBiLE", 0.25, 20.0, 0.8, n=40),
        row(FULL, 0.5, 30.0, 0.9, ms_few=45.0), row("MoBiLE", 0.5, 15.0, 0.5, n=10), row("drop", 0.5, 9.0, 0.25, n=10),
    ])  # fmt: skip
    few = frame[frame.share == 0.5].set_index("system")
    assert few.accuracy["MoBiLE"] == 0.8 and few.n["MoBiLE"] == 40
    assert few.speed_up["MoBiLE"] == 3  # over the full model's time on the same ten
    assert few.accuracy["drop"] == 0.25  # whose text depends on it


def test_a_summary_is_over_worlds_and_tasks():
    found = [row(FULL, 0.25, 40.0, 0.9), row(FULL, 0.25, 10.0, 0.9, task="small-functions")]
    found += [row("drop", 0.25, 10.0, 0.4), row("drop", 0.25, 10.0, 0.8, task="small-functions")]
    one = summary(table(found)).set_index("system").loc["drop"]
    assert one.speed_up == pytest.approx(2)
    assert (one.least, one.most) == (1, 4)
    assert one.difference == pytest.approx(-30) and one.worst == pytest.approx(-50)


def test_cells_begin_with_the_full_model_and_refuse_what_there_is_not():
    some = cells(["tiny-olmoe"], names=["drop"], shares=[0.5], n=3)
    assert [(c.task, c.system) for c in some] == [(t, s) for t in literature.TASKS for s in (FULL, "drop")]
    shares = {name: [c.share for c in cells(["w"], names=[name], among=["t"], n=3) if c.system == name]
              for name in (FULL, "BuddyMoE", "SMoE")}  # fmt: skip
    assert shares == {FULL: [0.25, 0.375, 0.5, 0.75], "BuddyMoE": [0.25, 0.375, 0.5, 0.75], "SMoE": [0.25, 0.5, 0.75]}
    with pytest.raises(MobileError, match="no system 'Drop'"):
        cells(["tiny-olmoe"], names=["Drop"])
    with pytest.raises(ValueError, match="shares"):
        cells(["tiny-olmoe"], shares=[1.5])


def test_the_command_measures_goes_on_and_writes(tmp_path, capsys, monkeypatch):
    save, out = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    command = ["compare", "--worlds", "tiny-olmoe", "--systems", "MoBiLE", "next gate", "--tasks", "small-functions"]
    command += ["--shares", "0.25", "--n", "2", "--save", str(save), "--json", str(out)]
    assert main(command) == 0
    assert "MoBiLE" in capsys.readouterr().out
    rows = {each["system"]: each for each in json.loads(out.read_text())}
    assert rows["next gate"]["same_text"] == 1 and rows["next gate"]["exact"]
    assert rows["MoBiLE"]["mb"] < rows[FULL]["mb"] and rows["MoBiLE"]["ms"] < rows[FULL]["ms"]
    monkeypatch.setattr(comparison, "measure", lambda cell: pytest.fail("it was measured already"))
    assert main(command) == 0


WORLD = literature.World("tiny-olmoe")


@pytest.fixture(scope="module", autouse=True)
def few_problems():
    """Systems learn from one training problem of each task: enough to be made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "LEARNED_FROM", 1)
        yield


@pytest.mark.parametrize("name", [*literature.ENTRIES, "PreMoe"])
def test_every_system_of_the_comparison_can_be_made(name):
    config = (
        literature.premoe(WORLD, "word-problems", 32) if name == "PreMoe" else literature.ENTRIES[name].make(WORLD, 32)
    )
    assert name == "PreMoe" or config.lossless == literature.ENTRIES[name].exact
    if config.codec.lossless or config.budget_gb is None:
        assert config.slots is not None
