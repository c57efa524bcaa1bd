"""What was computed and what was copied, when: the lanes of a trace. Knows no torch.

A trace holds its passes and its copies. On a virtual clock the rest follows: a layer's attention begins when the layer
before is over, then the experts that are there are computed, then the others as they arrive (see `memory.scheduler`).
A measured trace holds when experts were computed; between two layers lies what is called attention here, with whatever
the card waited for its host. There "wait" is what passes between two computations of one layer.

Legend: T tokens of a pass · L MoE layers · K experts routed to.
"""

from __future__ import annotations

import numpy as np

from ..costs import Costs
from ..hardware import Geometry, Hardware
from ..trace import Copy, Pass, Trace
from ..vocabulary import MobileError

COLUMNS = ("request", "step", "mode", "layer", "lane", "what", "expert", "begin", "end")


def spans(trace: Trace, *, request: int | None = None, steps=None):
    """A row for everything that took time, in a pandas frame.

    Args:
        trace: of a live run, or of a replay.
        request, steps: only the passes of this text, and of these of its tokens (a collection); None for all.

    Returns:
        Columns request, step, mode, layer (-1: after the last), lane ("compute", "link" or "host"), what, expert
        (-1: none), begin and end in seconds of the clock. What is "attention" (and norms, router, shared experts),
        "expert", "wait" (for an expert that is under way, or computed on the host) or "head" in the compute lane,
        "demand" or "prefetch" on the link, "host" on the host.
        Where a miss policy let residents stand in for others, those asked for are named.

    Raises:
        MobileError: what was computed when is not in the trace, and does not follow from it.
    """
    import pandas as pd

    about = trace.conditions
    measured, timed = about.get("measured"), any(done.waves for done in trace.passes)
    if not timed if measured else not (about.get("hardware_rates") and about.get("geometry_sizes")):
        raise MobileError(
            "this trace does not say when experts were computed (it was made elsewhere, or all of them were on the "
            "device all along): replay it, with hardware= and geometry=."
        )
    if about.get("questions", {}).get("codec", "").startswith("Channels("):
        raise MobileError("a trace does not keep how many channels each token needed, so no span is known.")
    if not measured:
        costs = Costs(Hardware(**about["hardware_rates"]), Geometry(**about["geometry_sizes"]), about["layers"])
    fixed = about.get("placed", ()) if about.get("slots", 0) < about["experts"] else ()
    there = [dict.fromkeys(fixed[layer] if fixed else (), 0.0) for layer in range(about["layers"])]
    # of each layer: expert -> when its copy was over
    wanted = None if steps is None else set(steps)
    rows: list[tuple] = []
    for done in trace.passes:
        asks = (request is None or done.request == request) and (wanted is None or done.step in wanted)
        if not measured:
            rows += _pass(done, costs, there, asks)
        elif asks:
            rows += _measured(done)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame.attrs.update(about)
    return frame


def breakdown(rows, by: str = "layer"):
    """Seconds of a token, by what they went to: columns attention, expert, wait and head, and transfer beside them.

    The first four follow one another and add up to the token's time; transfers run beside them.

    Args:
        rows: what `spans` returned; passes of the prompt are left out.
        by: "layer" (means over tokens, -1 for what follows the last layer) or "token" (a row a token).
    """
    keys = {"layer": ["layer"], "token": ["request", "step"]}
    if by not in keys:
        raise ValueError(f"by must be one of {', '.join(keys)}, got {by!r}.")
    written = rows[(rows["step"] > 0) & (rows["lane"] != "host")]
    seconds = written["end"] - written["begin"]
    kind = written["what"].where(written["lane"] == "compute", "transfer")
    groups = [written[key] for key in keys[by]]
    table = seconds.groupby([*groups, kind]).sum().unstack(fill_value=0.0)
    table = table.reindex(columns=["attention", "expert", "wait", "head", "transfer"], fill_value=0.0)
    if by == "layer":
        table /= max(1, len(written[["request", "step"]].drop_duplicates()))
    table = table.rename_axis(columns=None).reset_index()
    table.attrs.update(rows.attrs)
    return table


def overlap(rows) -> dict[str, float]:
    """Of what `spans` returned, the tokens after the prompt: seconds in which the link copied, in which experts were
    computed, and in which both happened; and "share", the part of the smaller that lay within the other."""
    written = rows[rows["step"] > 0]
    copies = _merged(written[written["lane"] == "link"])
    experts = _merged(written[written["what"] == "expert"])
    both, i, j = 0.0, 0, 0
    while i < len(copies) and j < len(experts):
        both += max(0.0, min(copies[i][1], experts[j][1]) - max(copies[i][0], experts[j][0]))
        i, j = (i + 1, j) if copies[i][1] < experts[j][1] else (i, j + 1)
    link, compute = (sum(end - begin for begin, end in found) for found in (copies, experts))
    return {"link": link, "experts": compute, "both": both, "share": both / max(min(link, compute), 1e-12)}


def _merged(rows) -> list[list[float]]:
    """Moments that the rows cover, as intervals without overlap, in order."""
    found: list[list[float]] = []
    for begin, end in sorted(zip(rows["begin"], rows["end"], strict=True)):
        if found and begin <= found[-1][1]:
            found[-1][1] = max(end, found[-1][1])
        else:
            found.append([begin, end])
    return found


def _measured(done: Pass) -> list[tuple]:
    """The rows of one pass on the wall clock. Clocks of card and host agree to some microseconds."""
    label, now, layer, rows = (done.request, done.step, done.mode), done.begin, None, []
    for wave in done.waves:
        begin = max(now, wave.begin)
        if begin > now:
            what = "wait" if wave.layer == layer else "attention"
            rows.append((*label, wave.layer, "compute", what, wave.expert if what == "wait" else -1, now, begin))
        now, layer = max(begin, wave.end), wave.layer
        rows.append((*label, layer, "compute", "expert", wave.expert, begin, now))
    if done.end > now:
        rows.append((*label, -1, "compute", "head" if done.waves else "attention", -1, now, done.end))
    return rows + [(*label, c.layer, "link", c.kind, c.expert, c.begin, c.end) for c in done.copies]


def _pass(done: Pass, costs: Costs, there: list[dict[int, float]], asks: bool) -> list[tuple]:
    """The rows of one pass, if it is asked for; `there` is brought up to date in any case."""
    label, now, tokens, rows = (done.request, done.step, done.mode), done.begin, done.ids.shape[1], []

    def add(layer: int, lane: str, what: str, expert: int, begin: float, end: float) -> None:
        rows.append((*label, layer, lane, what, expert, begin, end))

    for layer, ready in enumerate(there):
        copies = [copy for copy in done.copies if copy.layer == layer]
        _arrive(ready, [copy for copy in copies if copy.kind == "prefetch"])
        demanded = {copy.expert: copy.end for copy in copies if copy.kind == "demand"}
        if asks:
            begin, now = now, now + costs.layer_s(tokens)
            add(layer, "compute", "attention", -1, begin, now)
            asked = [
                (demanded.get(expert, ready.get(expert, 0.0)), amount, expert)
                for expert, amount in _asked(done, layer, demanded)
            ]
            on_host, start = _hosted(done, layer, ready, demanded, [expert for _, _, expert in asked]), now
            amount_of = {expert: amount for _, amount, expert in asked}
            asked = [each for each in asked if each[2] not in on_host]
            for arrival, amount, expert in sorted(asked, key=lambda each: each[0] if each[0] > now else 0.0):
                if arrival > now:
                    add(layer, "compute", "wait", expert, now, arrival)
                    now = arrival
                begin, now = now, now + costs.expert_s(amount)
                add(layer, "compute", "expert", expert, begin, now)
            for expert in on_host:
                begin, start = start, start + costs.host_s(amount_of[expert])
                add(layer, "host", "host", expert, begin, start)
            if on_host and start > now:
                add(layer, "compute", "wait", on_host[-1], now, start)
                now = start
        _arrive(ready, [copy for copy in copies if copy.kind == "demand"])
    if asks:
        add(-1, "compute", "head", -1, now, now + costs.head_s(tokens))
        for copy in done.copies:
            add(copy.layer, "link", copy.kind, copy.expert, copy.begin, copy.end)
    return rows


def _arrive(ready: dict[int, float], copies: list[Copy]) -> None:
    for copy in copies:
        ready.pop(copy.evicted, None)
        ready[copy.expert] = copy.end


def _hosted(done: Pass, layer: int, ready: dict[int, float], demanded: dict[int, float], asked: list[int]) -> list[int]:
    """The experts that the host computed: as many as were neither hit nor missed, of those who were not there."""
    count = int(done.requests[layer] - done.hits[layer] - done.misses[layer])
    absent_first = sorted((expert for expert in asked if expert not in demanded), key=lambda expert: expert in ready)
    return absent_first[:count]


def _asked(done: Pass, layer: int, demanded: dict[int, float]) -> list[tuple[int, int]]:
    """(expert, how many tokens it serves): those of the router's best that the layer was asked for."""
    count = int(done.requests[layer])
    order = np.argsort(-done.weights[layer], axis=1, kind="stable")
    best = np.take_along_axis(done.ids[layer], order, axis=1)  # [T, K]
    for run in range(best.shape[1], 0, -1):
        experts, amounts = np.unique(best[:, :run], return_counts=True)
        if len(experts) <= count:
            break
    pairs = dict(zip(experts.tolist(), amounts.tolist(), strict=True))
    others = [expert for expert in demanded if expert not in pairs]  # ran in the place of one of the best
    kept = [expert for expert in pairs if expert in demanded] + [e for e in pairs if e not in demanded]
    return [(expert, pairs[expert]) for expert in kept[: count - len(others)]] + [(expert, 1) for expert in others]


__all__ = ["breakdown", "overlap", "spans"]
