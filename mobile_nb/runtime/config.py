"""One configuration = one answer to each of the six questions, and how much device memory there is for experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from .. import html
from ..costs import Costs
from ..hardware import Geometry
from ..policies import LRU, Always, Full, Nothing, TopK, Wait
from ..policies.codec import Codec
from ..policies.count import Count
from ..policies.evict import Evict
from ..policies.keep import Keep
from ..policies.miss import Miss
from ..policies.prefetch import Prefetch
from ..vocabulary import MobileError, number, whole

QUESTIONS = {
    "count": "run",
    "keep": "keep",
    "prefetch": "wanted",
    "miss": "serve",
    "evict": "score",
    "codec": "pools",
}


@dataclass(frozen=True)
class MobileConfig:
    """How a model is offloaded. The default is the plain offloading baseline: all K experts, LRU, on demand.

    Attributes:
        count, keep, prefetch, miss, evict, codec: see `mobile_nb.policies`.
        slots: device slots of each MoE layer, at least 1, or a number for each; more than the layer has experts means
            all of them. A codec with several forms says what it makes of them.
        budget_gb: device memory for slots in GB (1e9 bytes), from which their number follows; slots hold experts in the
            codec's form. Neither: what fits. An encoded form also takes the memory of K decoded experts, once.

    Raises:
        TypeError, ValueError: a value that cannot be; the sentence says what was given and what is expected.
    """

    count: Count = field(default_factory=TopK)
    keep: Keep = field(default_factory=Always)
    prefetch: Prefetch = field(default_factory=Nothing)
    miss: Miss = field(default_factory=Wait)
    evict: Evict = field(default_factory=LRU)
    codec: Codec = field(default_factory=Full)
    slots: int | Sequence[int] | None = None
    budget_gb: float | None = None

    def __post_init__(self):
        for question, method in QUESTIONS.items():
            answer = getattr(self, question)
            if isinstance(answer, type) or not hasattr(answer, method):
                raise TypeError(
                    f"MobileConfig.{question} must be a policy with `{method}`, such as those in "
                    f"mobile_nb.policies.{question}, got {answer!r}."
                )
        if self.slots is not None and self.budget_gb is not None:
            raise ValueError("give slots or budget_gb, not both: one follows from the other.")
        if isinstance(self.slots, Sequence) and not isinstance(self.slots, str):
            each = [whole("each of slots", n, hint="device slots of a MoE layer") for n in self.slots]
            object.__setattr__(self, "slots", tuple(each))
        elif self.slots is not None:
            slots = whole("slots", self.slots, hint="device slots of each MoE layer")
            object.__setattr__(self, "slots", slots)
        if self.budget_gb is not None:
            number("budget_gb", self.budget_gb, low=0, hint="device memory for experts")

    @property
    def two_passes(self) -> bool:
        """Whether there is a little model to fall back from."""
        return bool(getattr(self.count, "two_passes", False)) or self.drafts

    @property
    def drafts(self) -> bool:
        """Whether the big model reads what was drafted, several tokens at once, and only what it confirms stays. The
        experts of its passes are then waited for, whatever the answer to a miss: that is for drafts."""
        return hasattr(self.keep, "drafts")

    def _repr_html_(self) -> str:
        """One row a question, as a notebook shows it."""
        room = self.slots if self.slots is not None else "what fits"
        rows = [(question, repr(getattr(self, question))) for question in QUESTIONS]
        rows.append(("slots", str(room) if self.budget_gb is None else f"what {self.budget_gb:g} GB hold"))
        return html.table("exact" if self.lossless else "changes the text", rows)

    @property
    def lossless(self) -> bool:
        """Whether the text is exactly that of the full model."""
        if self.drafts:
            first = self.codec.own is None and self.codec.forms[0].lossless  # coarser forms are for drafts
            return bool(getattr(self.count, "full_big", False)) and first
        count = getattr(self.count, "lossless", False)
        return count and self.miss.lossless and self.codec.lossless


def choose_slots(
    config: MobileConfig, geometry: Geometry, experts: int, free_gb: float, coded: Sequence[float | None] = (None,)
) -> tuple[int | tuple[int, ...], str]:
    """Slots per layer, as the configuration would say them, and the sentence that says where the number comes from.

    Args:
        geometry: what the model weighs, or is timed as.   experts: E of the model.   free_gb: device memory for them.
        coded: bytes a weight of each form, as in `Costs`.

    Raises:
        MobileError: there is not even room for one slot a layer; the sentence names the smallest budget.
    """
    if isinstance(config.slots, tuple):
        slots = tuple(min(n, experts) for n in config.slots)
        return slots, f"{min(slots)} to {max(slots)} of {experts} experts a layer, as asked for"
    sizes = [geometry.expert_bytes if each is None else round(geometry.expert_params * each) for each in coded]

    def gb(slots: int) -> float:
        return (
            sum(min(n, experts) * size for n, size in zip(config.codec.pools(slots), sizes, strict=True))
            * geometry.moe_layers
            / 1e9
        )

    if config.slots is not None:
        slots, why = config.slots, "as asked for"
    else:
        given = config.budget_gb is not None
        budget = config.budget_gb if given else free_gb
        fit = [n for n in range(1, experts + 1) if gb(n) <= budget * (1 + 1e-9)]  # a budget of exactly n slots holds n
        why = f"from a budget of {budget:.3g} GB" if given else f"what fits the {budget:.3g} GB left on the device"
        if not fit:
            raise MobileError(
                f"{budget:.3g} GB cannot hold one expert slot in each of the {geometry.moe_layers} MoE layers of "
                f"{geometry.name}; the smallest budget is {gb(1) * 1.0006:.4g} GB."
            )
        slots = fit[-1]
    slots = min(slots, experts)
    pools = [min(n, experts) for n in config.codec.pools(slots)]
    if len(pools) == 1:
        form = "" if coded[0] is None else f" in {config.codec!r}"
        return slots, f"{slots} of {experts} experts a layer{form}, {why}"
    each = " and ".join(f"{n} in {form!r}" for n, form in zip(pools, config.codec.forms, strict=True))
    return slots, f"slots a layer for {each}, of {experts} experts, {why}"


def conditions(config: MobileConfig, costs: Costs, slots: int | Sequence[int], chosen: str) -> dict:
    """What every number of a simulated trace depends on, beside the model."""
    about = {
        "time": f"simulated on {costs.hardware.name}, timed as {costs.geometry.name}",
        "measured": False,
        "hardware": costs.hardware.name,
        "geometry": costs.geometry.name,
        "system": repr(config),
        "questions": {question: repr(getattr(config, question)) for question in QUESTIONS},
        "hardware_rates": asdict(costs.hardware),
        "geometry_sizes": asdict(costs.geometry),
        "slots": list(slots) if isinstance(slots, tuple) else slots,
        "slots_chosen": chosen,
        "drafts": config.drafts,
        "expert_bytes": costs.expert_bytes,
    }
    if costs.coded != (None,):
        about["form_bytes"] = [costs.bytes_of(form) for form in range(len(costs.coded))]
        about["pools"] = list(config.codec.pools(slots)) if isinstance(slots, int) else None
    if hasattr(config.evict, "placed"):  # who is there before the first token and stays
        each = [slots] * costs.layers if isinstance(slots, int) else slots
        about["placed"] = [list(config.evict.placed(at, config.codec.pools(n)[0])) for at, n in enumerate(each)]
    return about


def found(kind: type, given, by_name):
    """`given` itself where it is one of its kind, or what its name stands for."""
    one = by_name(given) if isinstance(given, str) else given
    if not isinstance(one, kind):
        raise TypeError(f"{kind.__name__.lower()} must be a {kind.__name__} or the name of one, got {given!r}.")
    return one


__all__ = ["MobileConfig", "choose_slots", "conditions", "found"]
