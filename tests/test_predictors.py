"""What predictors expect, and the prefetchers and evictions that hold them, on cases worked out by hand."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st

from mobile_nb import Trace
from mobile_nb.policies import (
    AdaptiveDepth,
    ByPriority,
    Cumulative,
    ExpertMap,
    Maps,
    MeanScore,
    NearestAbsent,
    PredictedReuse,
    RequestMatrix,
    Requests,
    Successors,
    TopScore,
    TwoLevel,
    Weighted,
)
from mobile_nb.policies.evict import History
from mobile_nb.policies.predict.ask import cosine, map_of


@dataclass
class View:
    """Two layers of four experts, one or two active, unless a test says otherwise."""

    counts: object = field(default_factory=lambda: np.zeros((2, 4)))
    now: list = field(default_factory=list)  # (ids, weights) of each layer routed so far
    last: object = None
    layers: int = 2
    experts: int = 4
    top_k: int = 1
    outcomes: list = field(default_factory=list)
    here: dict = field(default_factory=dict)
    gates: dict = field(default_factory=dict)
    said: object = None

    @property
    def activations(self):
        return np.array(self.counts, dtype=float)

    def routed(self, layer):
        return tuple(np.array(part) for part in self.now[layer])

    def recent(self, tokens):
        return tuple(part[:, -tokens:] for part in self.last)

    def resident(self, layer):
        return self.here.get(layer, [])

    def gate(self, layer):
        return self.gates[layer]

    def scores(self, layer):
        return self.said


def trace_of(ids, scores=None, *, texts=1, experts=4):
    """Routing [T, L, K] as `texts` texts of equal length."""
    trace = Trace.from_routing(np.array(ids), num_experts=experts, scores=scores)
    for n, done in enumerate(trace.passes):
        done.request = n * texts // len(trace.passes)
    return trace


def flat(wanted):
    return [(w.layer, *w.experts) for w in wanted]


@dataclass(frozen=True)
class Says:
    """A predictor that always says the same."""

    rows: tuple

    def expected(self, layer, view):
        return np.array(self.rows, dtype=float)


# -- predictors ----------------------------------------------------------------------------------------------------

# two texts of two tokens: the first goes 0 then 1 and 0 then 2, the second 3 then 3 twice
TEXTS = trace_of([[[0], [1]], [[0], [2]], [[3], [3]], [[3], [3]]], texts=2)


def test_past_requests_are_kept_as_ratios_of_each_layer():
    requests = Requests.from_trace(TEXTS)
    assert requests.ratios.tolist() == [[[1, 0, 0, 0], [0, 0.5, 0.5, 0]], [[0, 0, 0, 1], [0, 0, 0, 1]]]


def test_a_request_goes_on_as_the_most_similar_ones_did():
    """So far twice expert 0, and 1 in the second layer: cosine (1 + 1/2) / (sqrt 2 * sqrt 1.5) = 0.866 with the first
    text, 0 with the second; alone, the nearest one is followed, and two speak as loudly as they are similar."""
    so_far = View([[2, 0, 0, 0], [0, 1, 0, 0]])
    requests = Requests.from_trace(TEXTS)
    assert RequestMatrix(requests, 1).expected(-1, so_far).tolist() == requests.ratios[0].tolist()
    assert RequestMatrix(requests, 2).expected(-1, so_far) == pytest.approx(requests.ratios[0])
    both = RequestMatrix(requests, 2).expected(-1, View())
    assert both == pytest.approx(requests.ratios.mean(axis=0)), "nothing is known yet: all are alike"
    here = View(now=[([3], [1.0])])
    assert RequestMatrix(requests, 1).expected(0, here).tolist() == requests.ratios[1].tolist(), "this token counts"
    mixed = View([[3, 0, 0, 1], [0, 0, 0, 0]])
    one, other = 0.75 / np.hypot(0.75, 0.25) / np.sqrt(1.5), 0.25 / np.hypot(0.75, 0.25) / np.sqrt(2)
    share = one / (one + other)
    assert RequestMatrix(requests, 2).expected(-1, mixed)[0] == pytest.approx([share, 0, 0, 1 - share])


def test_an_iteration_goes_on_as_the_one_with_the_same_trajectory():
    """Both tokens of the first text begin in expert 0 and 1 with other weights; what the text is about says no more."""
    ids = [[[0, 1], [2, 3]], [[1, 0], [0, 1]], [[2, 3], [2, 0]], [[3, 2], [2, 0]]]
    scores = [[[0.9, 0.1], [0.6, 0.2]], [[0.9, 0.1], [0.5, 0.5]], [[0.5, 0.5]] * 2, [[0.5, 0.5]] * 2]
    maps = Maps.from_trace(trace_of(ids, scores, texts=2))
    assert maps.maps[0] == pytest.approx(np.array([[0.9, 0.1, 0, 0], [0, 0, 0.75, 0.25]]))
    assert maps.text.tolist() == [0, 0, 1, 1] and maps.about[1, 0].tolist() == [0, 0, 0.5, 0.5]
    first = View(now=[([0, 1], [0.8, 0.2])], top_k=2)
    assert ExpertMap(maps).expected(0, first)[1] == pytest.approx([0, 0, 0.75, 0.25])
    second = View(now=[([1, 0], [4.0, 1.0])], top_k=2)
    assert ExpertMap(maps).expected(0, second)[1] == pytest.approx([0.5, 0.5, 0, 0])
    about = View([[0, 0, 3, 3], [2, 0, 4, 0]], top_k=2)
    assert ExpertMap(maps).expected(-1, about)[0] == pytest.approx([0, 0, 0.5, 0.5]), "before the first layer"
    assert ExpertMap(maps, 2).expected(0, first)[1] == pytest.approx([0.25, 0.25, 0.375, 0.125])
    assert len(Maps.from_trace(trace_of(ids, texts=2), most=3).maps) == 3


def test_the_mean_score_of_the_last_tokens():
    ids = np.array([[[0, 1], [0, 2], [3, 0]]])  # [L, N, K]
    weights = np.array([[[3.0, 1.0], [0.5, 0.5], [0.9, 0.1]]])
    view = View(last=(ids, weights))
    assert MeanScore(2).expected(-1, view)[0] == pytest.approx([0.3, 0, 0.25, 0.45])
    assert MeanScore(9).expected(-1, view)[0] == pytest.approx([1.35 / 3, 0.25 / 3, 0.5 / 3, 0.9 / 3])
    assert MeanScore().expected(-1, View(last=(ids[:, :0], weights[:, :0]))).tolist() == [[0] * 4]


def test_successors_are_counted_between_layers_of_a_token():
    """Expert 0 of the first layer goes to 1 twice and to 2 once, 3 to 3; of four tokens 1 is popular twice."""
    table = Successors.from_trace(trace_of([[[0], [1]], [[0], [1]], [[0], [2]], [[3], [3]]]))
    assert table.expected(0, View(now=[([0], [1.0])]))[1] == pytest.approx([0, 2 / 3, 1 / 3, 0])
    assert table.expected(0, View(now=[([3], [1.0])]))[1].tolist() == [0, 0, 0, 1]
    assert table.expected(-1, View())[1].tolist() == [0, 0.5, 0.25, 0.25]
    assert table.share.shape == (3, 2, 4, 4) and not table.share[1:].any(), "there is no third layer"
    smooth = Successors.from_trace(trace_of([[[0], [1]], [[0], [1]], [[0], [2]], [[3], [3]]]), 1, smooth=1)
    assert smooth.expected(0, View(now=[([0], [1.0])]))[1] == pytest.approx([0, 2.5 / 4, 1.25 / 4, 0.25 / 4])


@given(st.lists(st.lists(st.floats(0, 5), min_size=4, max_size=4), min_size=2, max_size=2))
def test_cosines_are_within_one_and_probabilities_sum_to_one_or_nothing(matrix):
    similarity = cosine(np.array(matrix), np.array([matrix, np.ones((2, 4)), np.zeros((2, 4))]))
    assert (similarity >= 0).all() and (similarity <= 1 + 1e-9).all() and similarity[2] == 0
    found = map_of(np.tile(np.arange(4), (2, 1)), np.array(matrix), 4)
    for row, weights in zip(found, matrix, strict=True):
        assert row.sum() == pytest.approx(1) or max(weights) < 1e-15


# -- prefetchers ---------------------------------------------------------------------------------------------------


def test_priority_is_the_expected_share_times_nearness():
    """Three layers. Before the pass, layer 0 is 1 away, so its factor is 2/3, then 1/3 and 0; after layer 0 the factors
    of layers 1 and 2 are 2/3 and 1/3: 0.5 * 2/3 = 0.33, 0.9 * 1/3 = 0.30, 0.25 * 2/3 = 0.17 twice, 0.1 / 3 = 0.03."""
    by = Says(((2, 1, 0, 0), (2, 1, 1, 0), (0, 0, 1, 9)))
    view = View(layers=3, top_k=2)
    assert flat(ByPriority(by).wanted(0, view)) == [(1, 0), (2, 3), (1, 1), (2, 2)]
    assert flat(ByPriority(by, experts=3).wanted(0, view)) == [(1, 0), (2, 3), (1, 1), (1, 2), (2, 2)]
    assert flat(ByPriority(by, ahead=1, experts=1).wanted(0, view)) == [(1, 0)]
    assert flat(ByPriority(by).wanted(-1, view)) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 3)]
    assert flat(ByPriority(by).wanted(2, view)) == []


def test_experts_are_fetched_until_their_probability_is_enough():
    by = Says(((6, 2, 2, 0), (1, 0, 0, 0), (1, 1, 1, 1)))
    view = View(layers=3)
    wanted = {mass: flat(Cumulative(by, 1, mass).wanted(-1, view)) for mass in (0, 0.6, 0.61, 0.8, 0.9, 1)}
    assert wanted[0] == [(0,)] and wanted[0.6] == [(0, 0)] and wanted[0.61] == wanted[0.8] == [(0, 0, 1)]
    assert wanted[0.9] == wanted[1] == [(0, 0, 1, 2)]
    assert flat(Cumulative(by, 2).wanted(-1, view)) == [(0, 0, 1, 2), (1, 0)]
    assert flat(Cumulative(by, 2, experts=3).wanted(0, view)) == [(2, 0, 1, 2)]
    assert Cumulative(by, 2).wanted(1, view) == []


def passed(misses=0, late=0, wasted=0):
    return {name: np.array([n, 0]) for name, n in {"misses": misses, "late": late, "wasted": wasted}.items()}


def test_the_depth_follows_stalls_and_waste():
    by = Says(((1, 0, 0, 0),) * 6)
    policy = AdaptiveDepth(by, start=2, most=4, stalls=2, wasted=3, window=3)
    for outcomes, depth in [
        ([], 2),
        ([passed(1, 1)], 3),
        ([passed(1)] * 3, 2),
        ([passed(2)] * 3, 4),
        ([passed(2)] * 9, 4),
        ([passed(wasted=3)], 1),
        ([passed(wasted=3)] * 3, 1),
        ([passed(2, wasted=9)], 3),
        ([passed(2), passed(), passed(), passed()], 2),
    ]:
        view = View(layers=6, outcomes=outcomes)
        assert policy.depth(view) == depth, outcomes
        assert [w.layer for w in policy.wanted(0, view)] == list(range(1, 1 + depth))
    assert [w.layer for w in policy.wanted(4, View(layers=6))] == [5]


def test_the_next_gate_is_read_and_those_behind_it_where_all_of_it_is_there():
    view = View(layers=5, gates={1: [0, 1], 2: [2, 3], 3: [1, 2], 4: [0, 3]}, here={1: [0, 1, 2], 2: [3]})
    assert flat(NearestAbsent(3).wanted(0, view)) == [(1, 0, 1), (2, 2, 3)]
    assert flat(NearestAbsent(1).wanted(0, view)) == [(1, 0, 1)]
    assert flat(NearestAbsent(3, 1).wanted(2, view)) == [(3, 1)]
    assert NearestAbsent().wanted(-1, view) == NearestAbsent().wanted(4, view) == []


def test_only_top_scores_are_fetched_early():
    """Of two active experts b is the third score, 0.2; with a = 0.25 the bound is 0.25."""
    assert flat(TopScore().wanted(0, View(top_k=2, said=[0.2, 0.45, 0.1, 0.25]))) == [(1, 1, 3)]
    assert flat(TopScore(0.5).wanted(0, View(top_k=2, said=[0.2, 0.45, 0.1, 0.25]))) == [(1, 1)]
    assert flat(TopScore().wanted(0, View(top_k=4, said=[0.1, 0.2, 0.3, 0.4]))) == [(1, 3, 2, 1, 0)]
    assert TopScore().wanted(-1, View()) == TopScore().wanted(1, View()) == []


# -- evictions -----------------------------------------------------------------------------------------------------


def history(expected=None, **columns):
    shown = {name: np.array([values], dtype=float) for name, values in columns.items()}
    shape = np.zeros((1, 3))
    given = None if expected is None else np.array([expected], dtype=float)
    return History(**({"last_used": shape, "uses": shape, "fetched": shape} | shown), expected=given)


def leaves_first(policy, **columns):
    return policy.score(history(**columns))[0].argsort(kind="stable").tolist()


def test_the_least_expected_leaves_and_the_least_recent_of_equals():
    policy = PredictedReuse(MeanScore())
    assert leaves_first(policy, expected=[0.5, 0.1, 0.3], last_used=[1, 3, 2]) == [1, 2, 0]
    assert leaves_first(policy, expected=[0.2, 0.2, 0.1], last_used=[2, 1, 3]) == [2, 1, 0]
    assert leaves_first(policy, last_used=[2, 1, 3]) == [1, 0, 2], "while a prompt is read"
    both = PredictedReuse(MeanScore(), frequency=True)
    assert leaves_first(both, expected=[0.5, 0.1, 0.3], uses=[1, 9, 4], last_used=[1, 2, 3]) == [0, 1, 2]


def test_recency_and_frequency_are_weighed():
    columns = {"last_used": [10, 5, 1], "uses": [1, 2, 4]}
    assert leaves_first(Weighted(1, 0), **columns) == [2, 1, 0]
    assert leaves_first(Weighted(0, 1), **columns) == [0, 1, 2]
    assert Weighted(0.5, 0.5).score(history(**columns))[0] == pytest.approx([0.625, 0.5, 0.55])


def test_an_expert_rises_when_it_is_asked_for_again():
    """Slot 0 was fetched for request 4 and used by it alone, slot 1 for 2 and used in 3, slot 2 ahead of time."""
    assert leaves_first(TwoLevel(), last_used=[4.5, 3.5, 2.33], fetched=[4, 2, 1]) == [0, 2, 1]
    assert leaves_first(TwoLevel(), last_used=[4.5, 3.5, 2.33], fetched=[4, 3, 2]) == [2, 1, 0]


def test_fields_that_cannot_be_are_refused():
    by = MeanScore()
    for make in (ByPriority, Cumulative, AdaptiveDepth, PredictedReuse):
        with refused(f"{make.__name__}.by must be a predictor", "'what'"):
            make("what")
    for make, name in ((ByPriority, "experts"), (Cumulative, "ahead"), (AdaptiveDepth, "window")):
        with refused(f"{make.__name__}.{name}", "at least 1"):
            make(by, **{name: 0})
    with refused("at most most = 8", "got 9"):
        AdaptiveDepth(by, start=9)
    with refused("Cumulative.mass"):
        Cumulative(by, mass=1.1)
    for make, field_name in ((RequestMatrix, "requests"), (ExpertMap, "maps")):
        with refused(f"{make.__name__}.{field_name} must be what"):
            make(None)
    with refused("Weighted.recency"):
        Weighted(-1)
