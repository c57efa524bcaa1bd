"""The gamma explorer without a browser: its controls are assigned to and its buttons clicked, as a reader would."""

import gc
import statistics
import threading
import time

import pytest
import torch
from helpers import EXPERTS, TOP_K, make, refused

from mobile_nb import GammaExplorer, MobileError, offload, replay, systems
from mobile_nb.hardware import PRESETS
from mobile_nb.view.display import PLOTLY, VIEW
from mobile_nb.view.explorer import REDRAWS_PER_S
from mobile_nb.view.replayed import GAMMAS, Replayed

NEW = 8
PROMPT = "four words to continue"


class Words:
    """A tokenizer of sorts: a word is an id, and an id a word."""

    def __call__(self, text, return_tensors):
        return {"input_ids": torch.tensor([[3 + sum(map(ord, word)) % 90 for word in text.split()]], dtype=torch.long)}

    def decode(self, ids, **_):
        return "".join(f" w{i}" for i in ids)


class Gate:
    """A streamer that holds the writing in its `at`-th token until it is let go on."""

    def __init__(self, at):
        self.at, self.seen = at, -1  # the prompt comes first
        self.reached, self.go_on = threading.Event(), threading.Event()

    def put(self, value):
        self.seen += 1
        if self.seen == self.at:
            self.reached.set()
            assert self.go_on.wait(30)

    def end(self):
        pass


@pytest.fixture
def engine():
    with offload(make(), systems.mobile(gamma=1.0, slots=3), tokenizer=Words()) as engine:
        yield engine


@pytest.fixture
def explore():
    made = []

    def explore(engine, at=None, **named):
        gate = Gate(at)
        words = {"prompt": PROMPT, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0, "streamer": gate}
        explorer = GammaExplorer(engine, **(words | named))
        explorer.pace.value = 0.0
        made.append((explorer, gate))
        return explorer, gate

    yield explore
    for explorer, gate in made:
        gate.go_on.set()
        explorer.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "mobile_nb writer"]


def test_start_writes_and_marks_each_token_by_who_wrote_it(engine, explore):
    explorer, _ = explore(engine)
    explorer._start.click()
    assert explorer.wait(30)
    assert [step.wrote for step in explorer.steps] == ["big"] * NEW and explorer.problem == ""
    assert explorer._text.value.count("<b ") == NEW and f" w{explorer.steps[-1].token_id}</b>" in explorer._text.value
    assert (
        f"{NEW} tokens · 100 % fell back" in explorer._tally.value and "simulated on rtx4080" in explorer._tally.value
    )
    assert not explorer._start.disabled and explorer._stop.disabled


def test_gamma_acts_on_the_next_token_and_leaves_a_mark(engine, explore):
    explorer, gate = explore(engine, at=3)
    explorer.start()
    assert gate.reached.wait(30)
    explorer.gamma.value = 0.0
    gate.go_on.set()
    explorer.wait()
    assert [step.wrote for step in explorer.steps] == ["big"] * 3 + ["little"] * (NEW - 3)
    assert explorer._text.value.count("⟨γ 1 → 0⟩") == 1 and explorer._text.value.count("⟨γ") == 1


def test_stop_ends_the_text_in_the_middle(engine, explore):
    explorer, gate = explore(engine, at=3)
    explorer._text.value = "what was written before"
    explorer.start()
    assert "before" not in explorer._text.value
    assert gate.reached.wait(30) and explorer._start.disabled and not explorer._stop.disabled
    threading.Timer(0.2, gate.go_on.set).start()
    explorer._stop.click()
    assert 3 <= len(explorer.steps) < NEW and not engine.writing
    assert not explorer._start.disabled


def test_what_goes_wrong_is_shown_as_a_sentence_and_forgotten_at_the_next_start(engine, explore):
    explorer, _ = explore(engine, prompt="")
    explorer.start()
    explorer.wait()
    assert explorer.problem == "the prompt is empty: give at least one token."
    assert 'role="alert"' in explorer._said.value and explorer.problem in explorer._said.value
    assert "Traceback" not in explorer._said.value and not explorer._start.disabled
    explorer.prompt.value = PROMPT
    explorer.start()
    explorer.wait()
    assert explorer.problem == explorer._said.value == "" and len(explorer.steps) == NEW


def test_a_second_explorer_refuses_while_the_first_one_writes(engine, explore):
    first, gate = explore(engine, at=2)
    second, _ = explore(engine)
    second.gamma.value = 1.0
    first.start()
    assert gate.reached.wait(30)
    second.slots.value = 5
    second.start()
    assert "writing already" in second.problem and second.steps == [] and not second._start.disabled
    gate.go_on.set()
    first.wait()
    assert len(first.steps) == NEW and first.problem == "" and engine.slots == 3
    second.start()
    second.wait()
    assert len(second.steps) == NEW and second.problem == "" and engine.slots == 5


def test_closing_stops_the_text_and_removes_the_widgets(engine, explore):
    explorer, gate = explore(engine, at=2)
    explorer.start()
    assert gate.reached.wait(30)
    threading.Timer(0.2, gate.go_on.set).start()
    explorer.close()
    assert len(explorer.steps) < NEW and not engine.writing
    assert explorer.box.comm is None and explorer.gamma.comm is None


def test_leaving_the_block_ends_the_text_with_a_sentence(explore):
    with offload(make(), systems.mobile(slots=3), tokenizer=Words()) as engine:
        explorer, gate = explore(engine, at=2)
        explorer.start()
        assert gate.reached.wait(30)
    gate.go_on.set()
    explorer.wait()
    assert "closed" in explorer.problem
    explorer.start()
    explorer.wait()
    assert "closed" in explorer.problem


def test_slots_link_and_fraction_act_from_the_next_start_and_say_so(engine, explore):
    explorer, gate = explore(engine, at=2)
    explorer.start()
    assert gate.reached.wait(30)
    explorer.slots.value = 5
    explorer.link.value = PRESETS["t4-colab"]
    explorer.fraction.value = 1 / TOP_K
    for said in ("From the next Start", "slots 3 → 5", "t4-colab", "2 → 1 experts"):
        assert said in explorer._said.value
    gate.go_on.set()
    explorer.wait()
    assert engine.slots == 3 and "slots 3 → 5" in explorer._said.value
    explorer.gamma.value = 0.5
    explorer.start()
    explorer.wait()
    assert (engine.slots, engine.hardware.name, engine.config.count.fraction) == (5, "t4-colab", 1 / TOP_K)
    assert engine.gamma == engine.config.keep.gamma == 0.5 and explorer._said.value == ""
    assert len(engine.trace.to_frame()) == NEW and "simulated on t4-colab" in explorer._tally.value


def test_an_engine_without_gamma_is_refused():
    with offload(make(), systems.on_demand(slots=3)) as engine, refused("gamma", kinds=MobileError):
        GammaExplorer(engine)


def test_what_a_notebook_stores_of_it_is_short_and_always_the_same(engine, explore):
    bundle = explore(engine)[0]._repr_mimebundle_()
    assert set(bundle) == {"text/plain", VIEW} and bundle["text/plain"] == "GammaExplorer(OlmoeForCausalLM)"


def test_the_browser_is_sent_no_more_than_it_can_draw(engine, explore):
    explorer, _ = explore(engine, max_new_tokens=60)
    sent = []
    explorer._text.observe(lambda change: sent.append(change), "value")
    began = time.perf_counter()
    explorer.start()
    explorer.wait()
    assert 1 <= len(sent) <= 2 + (time.perf_counter() - began) * REDRAWS_PER_S


# -- the replay -----------------------------------------------------------------------------------------------------


@pytest.fixture
def recording(engine):
    engine.gamma = 1.1
    for text in (PROMPT, "another text", "and a third one"):
        engine.generate(text, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    return engine.trace


def test_the_curve_is_what_a_replay_says(recording):
    replayed = Replayed(recording)
    config = systems.mobile(slots=EXPERTS // 2)
    replayed.under(config, PRESETS["t4-colab"])
    for gamma in (0.0, 0.05, 0.11, 1.0):
        wanted = replay(recording, systems.mobile(gamma, slots=EXPERTS // 2), hardware="t4-colab")
        assert replayed.numbers(gamma) == pytest.approx(wanted.summary(), nan_ok=True)
        line, mark = replayed.curve(gamma).data
        assert len(line.x) == len(GAMMAS)
        assert mark.x[0] == 100 * wanted.fallback_ratio and mark.y[0] == 1e3 * wanted.seconds_per_token


def test_the_lanes_show_the_first_token_to_fall_back(recording):
    replayed = Replayed(recording)
    replayed.under(systems.mobile(slots=3), PRESETS["t4-colab"])
    assert "kept" in replayed.lanes(0.0).layout.title.text
    before = replayed.lanes(0.0).to_json()
    assert "written again" in replayed.lanes(1.0).layout.title.text
    assert replayed.lanes(1.0).to_json() != before and replayed.lanes(0.0).to_json() == before


def test_the_slider_moves_over_the_recording_too(engine, recording, explore):
    explorer, _ = explore(engine, trace=recording)
    curve, lanes = explorer._figures.children
    shown = []
    for gamma in (0.0, 1.0):
        explorer.gamma.value = gamma
        (one,), (other,) = curve.outputs, lanes.outputs
        shown.append((one["data"][PLOTLY], other["data"][PLOTLY]))
        assert f"γ {gamma:.2f}" in str(shown[-1][0]["layout"]["annotations"])
        assert f"γ {gamma:.2f}" in shown[-1][1]["layout"]["title"]["text"]
    assert shown[0] != shown[1]
    explorer.slots.value = 5
    assert curve.outputs[0]["data"][PLOTLY] != shown[1][0], "other slots, another curve"


def test_what_cannot_be_replayed_says_so_in_the_place_of_the_curve(engine, recording, explore):
    explorer, _ = explore(engine, trace=recording)
    explorer.fraction.value = 1 / TOP_K
    assert "needs the model" in explorer._figures.children[0].outputs[0]["data"]["text/plain"]
    explorer.fraction.value = 2 / TOP_K
    assert PLOTLY in explorer._figures.children[0].outputs[0]["data"]


@pytest.mark.slow
def test_a_move_over_the_shipped_recording_takes_less_than_100_milliseconds():
    """Processor time, so that other work on the machine does not count."""
    from mobile_nb import Trace
    from mobile_nb.files import data_path
    from mobile_nb.view.display import outputs

    replayed = Replayed(Trace.load(data_path("traces", "tiny-olmoe.parquet")))
    replayed.under(systems.mobile(slots=16), PRESETS["rtx4080-pcie4"])
    outputs(replayed.curve(0.7)), outputs(replayed.lanes(0.7))
    gc.collect()
    gc.freeze()  # what the tests before this one left is not walked through on its time
    took = []
    for gamma in (0.33, 0.71, 0.92, 0.96, 0.99, 0.34, 1.0):
        began = time.process_time()
        outputs(replayed.curve(gamma)), outputs(replayed.lanes(gamma))
        took.append(time.process_time() - began)
    gc.unfreeze()
    assert statistics.median(took) < 0.1, took
