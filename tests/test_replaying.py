"""The commands replay and sweep, as a user types them."""

import json

import pytest

from mobile_nb.__main__ import main


def run(capsys, *words):
    code = main(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_replay_without_a_trace_plays_the_shipped_recording(capsys, tmp_path):
    code, out, _ = run(capsys, "replay", "--slots", "8", "--json", str(tmp_path / "row.json"))
    assert code == 0 and "simulated on rtx4080-pcie4, timed as olmoe-1b-7b, replayed; slots: 8 of 64" in out
    (row,) = json.loads((tmp_path / "row.json").read_text())
    assert 0 < row["hit_rate"] < 1 and f"{row['hit_rate']:.1%}" in out


@pytest.mark.parametrize("system", ["on_demand", "big", "little", "next_gate"])
def test_every_system_can_be_replayed_from_it(capsys, system):
    code, out, _ = run(capsys, "replay", "--system", system, "--evict", "LFU")
    assert code == 0 and f"\n{system} " in out
    assert ("what a live run would write" in out) == (system != "little")


def test_sweep_prints_a_row_for_each_point(capsys, tmp_path):
    grid = ["--gamma", "0", "1.1", "--slots", "8", "16", "--prefetch", "Nothing", "Oracle"]
    code, out, _ = run(capsys, "sweep", *grid, "--save", str(tmp_path / "kept"), "--json", str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert code == 0 and len(rows) == 8 and "8 replays; time simulated on rtx4080-pcie4" in out
    assert [row["fallback_ratio"] for row in rows] == [0] * 4 + [1] * 4
    again = run(capsys, "sweep", *grid, "--save", str(tmp_path / "kept"))
    assert again[1].startswith(out[: out.index("numbers written")])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["replay", "nowhere.parquet"], "there is no trace at nowhere.parquet."),
        (["replay", "--system", "big", "--gamma", "0.5"], "--gamma is of mobile"),
        (["sweep", "--slots", "0"], "slots"),
        (["replay", "--hardware", "abacus"], "there is no hardware preset 'abacus'"),
    ],
)
def test_mistakes_are_one_sentence(capsys, words, sentence):
    code, _, said = run(capsys, *words)
    assert code == 2 and sentence in said and len(said.strip().splitlines()) == 1
