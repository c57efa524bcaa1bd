"""Which expert lay in which slot after each token, and why it was there. Knows no torch and no pictures.

Legend: N tokens · L MoE layers · S slots a layer · T tokens of a pass · K experts routed to.
"""

from __future__ import annotations

import numpy as np

from ..trace import Pass, Trace
from ..vocabulary import MobileError

STATES = ("empty", "resident", "hit", "demand", "prefetched", "unused")
EMPTY, RESIDENT, HIT, DEMAND, PREFETCHED, UNUSED = range(len(STATES))


def occupancy(trace: Trace):
    """A row for each token, layer and slot, in this order, in a pandas frame.

    Args:
        trace: of a live run or of a replay. After a text that was cut short, slots that were forgotten with it are
            still shown as resident until another expert takes them.

    Returns:
        Columns request, step, layer, slot, expert (-1 where empty) and state, of the slot when the token was written:
        "empty"; "resident", not asked for by this token; "hit", asked for and there already; "demand", fetched because
        it was asked for and missing; "prefetched", fetched early for this token and asked for; "unused", fetched early
        and not asked for.

    Raises:
        MobileError: the trace knows of no slots, since it was recorded elsewhere, or they are of several kinds.
    """
    import pandas as pd

    about = trace.conditions
    if not {"slots", "layers", "experts"} <= about.keys():
        raise MobileError("this trace knows of no slots, because its routing was recorded elsewhere: replay it first.")
    if isinstance(about["slots"], list) or len(about.get("pools") or ()) > 1:
        raise MobileError("occupancy shows layers whose slots are alike, and these differ by layer or by form.")
    layers, slots = about["layers"], about["slots"]
    holds = np.full((layers, slots), -1)
    if slots >= about["experts"]:
        holds[:] = np.arange(slots)  # room for everybody: the device is filled before the first token
    else:
        for layer, placed in enumerate(about.get("placed", ())):
            holds[layer, : len(placed)] = placed
    state = _rest(holds)
    places, experts, states = [], [], []
    for done in trace.passes:
        _play(done, holds, state)
        if done.token_id >= 0:
            places.append((done.request, done.step))
            experts.append(holds.copy())
            states.append(state.copy())
            state = _rest(holds)
    request, step = np.array(places, dtype=int).reshape(-1, 2).T
    index = np.indices((len(places), layers, slots)).reshape(3, -1)
    frame = pd.DataFrame(
        {
            "request": request[index[0]],
            "step": step[index[0]],
            "layer": index[1],
            "slot": index[2],
            "expert": np.array(experts, dtype=int).ravel(),
            "state": pd.Categorical.from_codes(np.array(states, dtype=int).ravel(), STATES),
        }
    )
    frame.attrs.update(about)
    return frame


def asked(done: Pass, layer: int) -> np.ndarray:
    """Ids of the experts that a pass asked a layer for: as many of each token's best as it counted requests."""
    order = np.argsort(-done.weights[layer], axis=1, kind="stable")
    best = np.take_along_axis(done.ids[layer], order, axis=1)  # [T, K]
    for run in range(best.shape[1], 0, -1):
        experts = np.unique(best[:, :run])
        if len(experts) <= done.requests[layer]:
            break
    return experts


def _rest(holds: np.ndarray) -> np.ndarray:
    """States [L, S] before anything is asked for."""
    return np.where(holds >= 0, RESIDENT, EMPTY)


def _play(done: Pass, holds: np.ndarray, state: np.ndarray) -> None:
    """Brings holds and state [L, S] to the end of a pass."""
    for copy in done.copies:
        holds[copy.layer, copy.slot] = copy.expert
        state[copy.layer, copy.slot] = UNUSED if copy.kind == "prefetch" else DEMAND
    for layer in range(len(holds)):
        used = np.isin(holds[layer], asked(done, layer))
        state[layer, used & (state[layer] == RESIDENT)] = HIT
        state[layer, used & (state[layer] == UNUSED)] = PREFETCHED


__all__ = ["STATES", "asked", "occupancy"]
