"""Who runs in the place of an absent expert: BuddyMoE, near scores and their relatives, on cases worked out by hand."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from helpers import EXPERTS, GREEDY, TOP_K, make, plain, prompt, refused
from hypothesis import given
from hypothesis import strategies as st

from mobile_nb import MobileConfig, Trace, offload, systems
from mobile_nb.policies import Anybody, Buddies, Buddy, Drop, Foretold, NearScore, NextGate, NextRanked
from mobile_nb.policies.miss.buddy import entropy, entropy_quantile

NEW = 6


@dataclass
class View:
    """One layer of six experts."""

    here: tuple = ()
    said: object = None
    at: int = 0
    experts: int = 6
    ahead: object = None
    asked: list = field(default_factory=list)

    def resident(self, layer):
        return list(self.here)

    def scores(self, layer):
        self.asked.append(layer)
        return self.said

    def foretold(self, layer):
        return self.ahead


def serve(policy, experts, weights, here, said=None):
    return policy.serve(experts, weights, [e in here for e in experts], View(here, said))


def routed(*tokens):
    """A trace of one layer of six experts."""
    return Trace.from_routing(np.array(tokens)[:, None], num_experts=6)


PAIRS = routed([0, 1], [0, 1], [0, 2], [1, 0], [3, 4])  # M(0,1) = 3, M(0,2) = 1, M(3,4) = 1


def test_buddies_are_the_shortest_list_that_holds_the_share_of_co_activation():
    whole = Buddies.from_trace(PAIRS, alpha=1)
    assert whole.share[0, 0].tolist() == [0, 3 / 4, 1 / 4, 0, 0, 0]
    assert whole.share[0, 2].tolist() == [1, 0, 0, 0, 0, 0]
    assert whole.share[0, 5].tolist() == [0] * 6, "nobody ever chose it"
    lists = {alpha: Buddies.from_trace(PAIRS, alpha).of_expert(0, 0) for alpha in (0, 0.5, 0.75, 0.76, 1)}
    assert lists == {0: [], 0.5: [1], 0.75: [1], 0.76: [1, 2], 1: [1, 2]}
    assert Buddies.from_trace(PAIRS, 1, most=1).of_expert(0, 0) == [1]
    smooth = Buddies.from_trace(PAIRS, 1, smooth=1)
    assert smooth.share[0, 0].tolist() == pytest.approx([0, 4 / 9, 2 / 9, 1 / 9, 1 / 9, 1 / 9])


def test_by_weight_a_token_ties_as_strongly_as_its_weaker_expert():
    ids, scores = np.array([[[0, 1]], [[0, 2]]]), np.array([[[0.9, 0.1]], [[0.7, 0.3]]])
    trace = Trace.from_routing(ids, num_experts=3, scores=scores)
    assert Buddies.from_trace(trace, 1, by_weight=True).share[0, 0].tolist() == pytest.approx([0, 0.25, 0.75])
    assert Buddies.from_trace(trace, 1).share[0, 0].tolist() == [0, 0.5, 0.5]


def test_buddies_by_outputs_are_those_that_do_the_same():
    """Expert 1 does three quarters of what expert 0 does, in cosine, 2 the opposite, 3 something else."""
    sine = math.sqrt(1 - 0.75**2)
    outputs = np.array([[[1.0, 0]], [[1.5, 2 * sine]], [[-1, 0]], [[0, 1]]])[None]  # [L, E, N, H]
    share = Buddies.from_outputs(outputs, 1).share[0]
    assert share[0].tolist() == pytest.approx([0, 1, 0, 0])
    assert share[1].tolist() == pytest.approx([0.75 / (0.75 + sine), 0, 0, sine / (0.75 + sine)])


def test_knowledge_is_a_value_that_cannot_be_changed():
    one, same, other = (Buddies.from_trace(PAIRS, alpha) for alpha in (1, 1, 0.5))
    assert one == same != other and hash(one) == hash(same)
    assert repr(one) == repr(same) != repr(other) and len(repr(one)) < 40
    assert Buddy(one) == Buddy(same) != Buddy(other) and len({Buddy(one), Buddy(same)}) == 1
    with pytest.raises(ValueError, match="read-only"):
        one.share[0] = 1
    for ties, fragment in (
        (np.ones((2, 3)), "(2, 3)"),
        (-np.ones((1, 2, 2)), "at least 0"),
        (np.ones((1, 2, 3)), "3)"),
    ):
        with refused("ties must be", fragment):
            Buddies.of(ties)
    with refused("nothing to learn"):
        Buddies.from_trace(Trace({"layers": 1, "experts": 6}))


# ties of expert 0: 1 with 5, 2 with 3, 3 with 2; of expert 4: 1 with 4, 5 with 4
TIES = np.zeros((1, 6, 6))
TIES[0, 0, 1:4], TIES[0, 4, [1, 5]] = (5, 3, 2), 4
BUDDIES = Buddies.of(TIES, 1)
EVEN = [1 / 3] * 3


def test_an_absent_expert_is_replaced_by_its_best_free_resident_buddy():
    policy = Buddy(BUDDIES, tau=0.5, beta=2, rho=3)
    assert serve(policy, [0, 4, 5], EVEN, {5, 1, 2}) == [1, 4, 5], "4's buddies are 1, taken, and 5, asked for"
    assert serve(policy, [4, 0, 5], EVEN, {5, 1, 2}) == [1, 2, 5], "the best-ranked one chooses first"
    assert serve(policy, [0, 4, 5], EVEN, {0, 4, 5, 1}) == [0, 4, 5], "nobody is absent"
    assert serve(policy, [2, 3, 5], EVEN, {0, 1, 4}) == [2, 3, 5], "these have no buddies"
    assert serve(policy, [0, 4, 3], EVEN, {2, 5}) == [2, 5, 3]
    assert serve(Buddy(BUDDIES, tau=0.5, beta=2, rho=1), [0, 4, 3], EVEN, {2, 5}) == [2, 4, 3]
    assert serve(Buddy(BUDDIES, tau=0.5, beta=2, rho=0), [0, 4, 3], EVEN, {2, 5}) == [0, 4, 3]


def test_peaked_tokens_and_those_with_too_much_absent_wait():
    def answer(weights=(1 / 3, 1 / 3, 1 / 3), **fields):
        return serve(Buddy(BUDDIES, **({"tau": 0.5, "beta": 2} | fields)), [0, 5, 3], weights, {1, 5, 3})

    assert answer() == [1, 5, 3]
    assert answer((0.98, 0.01, 0.01)) == [0, 5, 3], "entropy 0.10"
    assert answer(tau=1) == [0, 5, 3], "even routing has an entropy of 1, which is not above 1"
    assert answer(tau=(0.5,)) == [1, 5, 3] and answer((0.98, 0.01, 0.01), tau=[0.05]) == [1, 5, 3]
    assert answer(beta=1 / 3) == [0, 5, 3] and answer(beta=0.34) == [1, 5, 3], "one of three is absent"
    assert answer((0.98, 0.01, 0.01), temperature=10) == [1, 5, 3], "hot enough, anything is even"


def test_the_tokens_own_score_of_a_buddy_counts_with_eta():
    """q is 0.5, 0.3, 0.2 for 1, 2, 3. The logits of all six are 0 but -2 for 1 and 2 for 2: mean 0, deviation
    sqrt(8/6), z = -1.73 and 1.73; at eta 0.2 Psi is 0.5 * 0.654 = 0.327 against 0.3 * 1.346 = 0.404."""
    logits = np.array([0.0, -2, 2, 0, 0, 0])
    scores = (np.exp(logits) / np.exp(logits).sum()).tolist()
    policy = Buddy(BUDDIES, tau=0.5, beta=2, eta=0.2)
    assert serve(policy, [0, 5, 4], EVEN, {1, 2, 5, 4}, scores) == [2, 5, 4]
    assert serve(Buddy(BUDDIES, tau=0.5, beta=2, eta=0.1), [0, 5, 4], EVEN, {1, 2, 5, 4}, scores) == [1, 5, 4]
    view = View({1, 5, 4}, scores)
    assert Buddy(BUDDIES, tau=0.5, beta=2).serve([0, 5, 4], EVEN, [False, True, True], view) and not view.asked


def test_entropy_is_zero_for_one_expert_and_one_for_equal_ones():
    assert entropy([0.2] * 4) == pytest.approx(1) and entropy([1, 0, 0]) == 0 and entropy([0.7]) == 0
    assert entropy([2.0, 1.0, 1.0]) == pytest.approx(1.5 / math.log2(3))  # bits of 1/2, 1/4, 1/4
    ids = np.array([[[0, 1]], [[0, 1]], [[0, 1]]])
    trace = Trace.from_routing(ids, num_experts=2, scores=np.array([[[1, 0]], [[1, 1]], [[3, 1]]]))
    assert entropy_quantile(trace, 0.5) == pytest.approx((entropy([3, 1]),))


def test_fields_that_cannot_be_are_refused():
    with refused("Buddy.buddies must be lists"):
        Buddy(None)
    with refused("Buddy.tau must be one number or 1"):
        Buddy(BUDDIES, tau=(0.5, 0.5))
    for name, value in {"tau": 1.5, "beta": -1, "rho": -1, "eta": -0.1, "temperature": 0}.items():
        with refused(f"Buddy.{name}", repr(value)):
            Buddy(BUDDIES, **{name: value})
    with refused("NearScore.a"):
        NearScore(-1)
    with refused("Anybody.seed"):
        Anybody(seed=-1)


# -- by score ------------------------------------------------------------------------------------------------------

SCORES = [0.30, 0.22, 0.20, 0.16, 0.08, 0.04]  # of experts 0 to 5; of three asked, b = 0.16


def test_near_scores_replace_those_that_only_just_made_it():
    """b is 0.16, expert 3's. With a = 0.3, those below 0.208 may be replaced, by those of at least 0.112."""
    assert serve(NearScore(0.3), [0, 1, 2], EVEN, {0, 1, 3}, SCORES) == [0, 1, 3]
    assert serve(NearScore(0.3), [0, 1, 2], EVEN, {2, 3}, SCORES) == [0, 1, 2], "0 and 1 are too good to replace"
    assert serve(NearScore(0.3), [0, 1, 2], EVEN, {0, 1, 4}, SCORES) == [0, 1, 2], "4 is too bad to stand in"
    assert serve(NearScore(0.5), [0, 1, 2], EVEN, {0, 3, 4}, SCORES) == [0, 3, 4], "0.24 and 0.08 are the bounds now"
    assert serve(NearScore(0.0), [0, 1, 2], EVEN, {0, 1, 3}, SCORES) == [0, 1, 2]
    assert serve(NearScore(9), list(range(6)), EVEN * 2, {0}, SCORES) == list(range(6)), "nobody was left out"


def test_the_next_ranked_resident_runs_whatever_its_score():
    assert serve(NextRanked(), [0, 1, 2], EVEN, {1, 5, 4}, SCORES) == [4, 1, 5]
    assert serve(NextRanked(), [0, 1, 2], EVEN, {1, 5}, SCORES) == [5, 1, 2]


def test_anybody_is_drawn_from_the_free_residents_and_the_same_every_time():
    drawn = {tuple(serve(Anybody(seed), [0, 1, 2], EVEN, {1, 3, 4, 5})) for seed in range(40)}
    assert {d[0] for d in drawn} == {3, 4, 5} and all(d[1] == 1 and len(set(d)) == 3 for d in drawn)
    assert serve(Anybody(7), [0, 1, 2], EVEN, {1, 3, 4, 5}) == serve(Anybody(7), [0, 1, 2], EVEN, {5, 4, 3, 1})
    assert serve(Anybody(most=1), [0, 1, 2], EVEN, {3}) == [3, 1, 2] and serve(Anybody(), [0], [1], set()) == [0]


def test_foretold_routing_runs_instead_where_somebody_read_it():
    view = View({0}, ahead=[5, 4, 3, 2])
    assert Foretold().serve([0, 1], [0.6, 0.4], [True, False], view) == [5, 4]
    assert serve(Foretold(), [0, 1], [0.6, 0.4], {0}) == [0, 1]


SUBSTITUTIONS = [Buddy(BUDDIES, tau=0, beta=2, rho=2), Anybody(1, 2), NearScore(2.0), NextRanked()]


@pytest.mark.parametrize("policy", SUBSTITUTIONS, ids=lambda p: type(p).__name__)
@given(
    asked=st.permutations(range(6)).map(lambda p: p[:3]),
    here=st.sets(st.integers(0, 5)),
    scores=st.lists(st.floats(0.01, 1), min_size=6, max_size=6),
)
def test_residents_stay_and_substitutes_are_residents_that_the_token_does_not_use(policy, asked, here, scores):
    weights = sorted((scores[e] for e in asked), reverse=True)
    served = serve(policy, asked, weights, here, scores)
    new = [after for before, after in zip(asked, served, strict=True) if after != before]
    assert len(set(served)) == 3
    assert all(after == before for before, after in zip(asked, served, strict=True) if before in here)
    assert set(new) <= here - set(asked)
    assert len(new) <= 2 or isinstance(policy, NearScore | NextRanked)


# -- live ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def buddies():
    with offload(make(), systems.on_demand(slots=4)) as engine:
        for seed in range(3):
            engine.generate(prompt(12, seed=seed), max_new_tokens=12, **GREEDY)
        return Buddies.from_trace(engine.trace)


def lossy(buddies):
    return [Buddy(buddies, tau=0.0, beta=2), Anybody(), NearScore(0.5), NextRanked(), Drop()]


@pytest.mark.parametrize("which", range(5), ids=["Buddy", "Anybody", "NearScore", "NextRanked", "Drop"])
def test_a_substitution_saves_fetches_and_is_exact_where_nobody_is_absent(buddies, which):
    miss, model = lossy(buddies)[which], make()
    wanted = plain(model, prompt(), NEW)
    with offload(model, MobileConfig(slots=EXPERTS, miss=miss)) as engine:
        assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == wanted
    counts = {}
    for name, config in {"wait": MobileConfig(slots=5), "other": MobileConfig(slots=5, miss=miss)}.items():
        with offload(model, config) as engine:
            engine.generate(prompt(), max_new_tokens=NEW, **GREEDY)
        report = engine.report()
        assert (report.hits + report.misses == report.requests).all()
        copies = sum(len(p.copies) for p in engine.trace.passes)
        assert copies == report.misses.sum()
        counts[name] = copies
    assert counts["other"] < counts["wait"]


@pytest.mark.parametrize("closed", [{"tau": 1.0}, {"beta": 0.0}, {"rho": 0}], ids=str)
def test_with_a_gate_closed_buddies_write_what_the_full_model_writes(buddies, closed):
    model = make()
    with offload(model, systems.buddymoe(buddies, **({"tau": 0.0, "beta": 2} | closed), slots=3)) as engine:
        assert engine.generate(prompt(), max_new_tokens=NEW, **GREEDY).token_ids == plain(model, prompt(), NEW)


def test_the_foretold_experts_are_what_the_gate_said():
    with offload(make(), systems.early_routing(slots=EXPERTS - 1)) as engine:
        engine.generate(prompt(), max_new_tokens=NEW, **GREEDY)
        trace = engine.trace
    for done in trace.passes[1:]:
        assert done.gates is not None and (done.gates[0, 1:] >= 0).all()
        assert (done.requests == TOP_K).all() and (done.misses[1:] == 0).all(), "what was prefetched is what runs"
    assert isinstance(engine.config.prefetch, NextGate)
