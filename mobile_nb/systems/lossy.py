"""Systems that change what is computed: other counts, answers to a miss, and forms."""

from __future__ import annotations

from collections.abc import Sequence

from .. import policies as p
from ..policies import NextGate, PredictedReuse
from ..policies.codec import Codec, Form
from ..runtime.config import MobileConfig


def adapmoe(sensitivity: Sequence[float], threshold: float, *, ahead: int = 3, **fields) -> MobileConfig:
    """AdapMoE (arXiv 2408.10284): fewer experts where little depends on them. Its cache sizes for each layer are those
    of `slots=`, a number for each, such as `analysis.curves.slots_by_layer` finds.

    Args:
        sensitivity, threshold: of each layer, and T, see `Sensitivity`.   ahead: see `NearestAbsent`.
    """
    chosen = {"count": p.Sensitivity(sensitivity, threshold), "prefetch": p.NearestAbsent(ahead)}
    return MobileConfig(**(chosen | fields))


def lexi(runs: Sequence[int], **fields) -> MobileConfig:
    """LExI (arXiv 2509.02753): a fixed number of experts in each layer, such as `PerLayer.least_loss(...).runs`."""
    return MobileConfig(**({"count": p.PerLayer(runs)} | fields))


def early_routing(**fields) -> MobileConfig:
    """Pre-gated MoE (arXiv 2308.12066) without its training: what the router says one layer early is what runs. The
    published system trains its routers for it and loses nothing; this imitation does, and goes by another name."""
    return MobileConfig(**({"prefetch": NextGate(1), "miss": p.Foretold()} | fields))


def buddymoe(
    buddies: p.Buddies, *, tau: float = 0.95, beta: float = 0.6, rho: int = 3, eta: float = 0.0, **fields
) -> MobileConfig:
    """BuddyMoE (arXiv 2511.10054): an absent expert's most frequent companion runs in its place, behind two gates.

    Args:
        buddies: lists, such as `Buddies.from_trace` makes.   tau, beta, rho, eta: see `policies.Buddy`.
    """
    return MobileConfig(**({"miss": p.Buddy(buddies, tau, beta, rho, eta)} | fields))


def smoe(a: float = 0.25, *, tokens: int = 16, host: float | None = None, **fields) -> MobileConfig:
    """SMoE, "Enabling MoE on the Edge" (arXiv 2508.18983): experts of almost the same score stand in for each other.
    The paper splits the misses that remain between host and link; here that is so where `host` is given.

    Args:
        a: what is almost the same, see `NearScore`.   tokens: see `MeanScore`.
        host: seconds of an expert on the host over those of fetching and computing it, see `OnHost` and
            `Costs.host_ratio`; the misses are then split so that both end together. None: all are fetched.
    """
    near = p.NearScore(a)
    miss = near if host is None else p.OnHost(host, balance=True, before=near)
    chosen = {"prefetch": p.TopScore(a), "miss": miss, "evict": PredictedReuse(p.MeanScore(tokens))}
    return MobileConfig(**(chosen | fields))


def premoe(popularity: p.Popularity, **fields) -> MobileConfig:
    """PreMoe (arXiv 2505.17639): a task's own experts are on the device, and while it writes only they run.

    The paper loads the experts of the highest expected selection score on the task, and no others. Here the device
    holds them from the start, and the best-scored resident that was not asked for takes an absent expert's place and
    weight [inference]. Prompts run all experts [inference]: they pass through one slot of each layer, and whoever came
    last may stand in too. With fewer slots than a token asks for, the rest is fetched.

    Args:
        popularity: of the task, such as `Popularity.from_trace(trace, by_weight=True)` of a few problems: sums of the
            router's weights, which stand for the expected score [inference].
    """
    return MobileConfig(**({"miss": p.NextRanked(), "evict": p.Popular(popularity)} | fields))


def emoe(popularity: p.Popularity, **fields) -> MobileConfig:
    """eMoE (arXiv 2503.06823): the experts that the next requests are expected to need stay on the device for 20 to 40
    prompts, and a miss uses the next-ranked resident.

    The paper's predictor is a trained XLNet; here the set is what the most recent requests used most [inference].
    `Engine.change` with newer counts, between two texts, makes the next set. Otherwise as `premoe`, prompts included.

    Args:
        popularity: of recent requests, such as `Popularity.from_trace(trace, latest=40)`.
    """
    return MobileConfig(**({"miss": p.NextRanked(), "evict": p.Popular(popularity)} | fields))


def quantized(codec: Codec, **fields) -> MobileConfig:
    """On-demand loading of quantised experts, as mixtral-offloading (arXiv 2312.17238) and others do: fewer bytes a
    fetch, and more slots in the same memory. Theirs are calibrated (HQQ); these are rounded to the nearest.

    Args:
        codec: such as `policies.Int4()`.
    """
    return MobileConfig(**({"codec": codec} | fields))


def mc(codec: p.PerExpert, *, least: float = 0.3, **fields) -> MobileConfig:
    """MC, "Mixture Compressor" (arXiv 2410.06270): more bits for experts that matter more, and experts of small weight
    left out. Its bits are 1 to 3 a weight, calibrated (GPTQ); ours are 8, 4 and 2, rounded to the nearest. Its token
    protection is left out [inference]: what a token is attended to, times the L1 norm of its hidden state, says there
    who keeps all experts, and a policy sees neither; but the published code looks for such tokens in prompts alone, and
    those run all experts here.

    Args:
        codec: such as `policies.PerExpert.from_trace` makes.   least: see `WeightRatio`.
    """
    return MobileConfig(**({"count": p.WeightRatio(least), "codec": codec} | fields))


def floe(channels: p.Channels, **fields) -> MobileConfig:
    """FloE (arXiv 2505.05950): of an expert only the channels that a token needs, which a matrix in two bits names.

    The published system predicts the next layer's experts with small trained networks (88 % right); here the next
    layer's gate says them [inference: this library trains none]. Its intra-expert predictor is as published, the
    expert's own `up` on the hidden state at hand, see `Channels.ahead`.

    Args:
        channels: such as `policies.Channels.by_sparsity(model.channels.up_outputs(model, texts))` makes; `budget_gb`
            gives it as much device memory as a system with whole experts has.
    """
    return MobileConfig(**({"prefetch": NextGate(1), "codec": channels} | fields))


def hobbit(
    t1: float = 0.6, t2: float = 0.9, *, low: Form | None = None, low_slots: int = 4, ahead: int = 1, **fields
) -> MobileConfig:
    """HOBBIT (arXiv 2411.01433): absent experts that weigh little come in few bits, or not at all.

    Args:
        t1, t2: see `LowBits`.   low: the second form; None for four bits.
        low_slots: slots of it in each layer; `budget_gb` is for those of both forms together.
        ahead: layers that the prefetch looks ahead. The paper stacks several gates [inference: one].
    """
    miss = p.LowBits(t1, t2)
    chosen = {
        "prefetch": p.InForm(NextGate(ahead), miss),
        "miss": miss,
        "evict": p.Weighted(0.2, 0.2, 0.8),  # a miss in the first form costs four times one in the second
        "codec": p.Mixed(low=p.Int4() if low is None else low, low_slots=low_slots),
    }
    return MobileConfig(**(chosen | fields))


def anybody(seed: int = 0, **fields) -> MobileConfig:
    """BuddyMoE's baseline "Random": any resident runs in an absent expert's place."""
    return MobileConfig(**({"miss": p.Anybody(seed)} | fields))


def drop(**fields) -> MobileConfig:
    """Absent experts are left out, but for the best one where nobody is there."""
    return MobileConfig(**({"miss": p.Drop()} | fields))


__all__ = [
    "adapmoe",
    "anybody",
    "buddymoe",
    "drop",
    "early_routing",
    "emoe",
    "floe",
    "hobbit",
    "lexi",
    "mc",
    "premoe",
    "quantized",
    "smoe",
]
