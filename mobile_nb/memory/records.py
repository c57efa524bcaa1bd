"""What the compiled rules keep, as arrays of records: numba pays for every array that a function is handed.

Legend: L MoE layers · E experts · S slots · Q prefetches that wait · N copies.
"""

from __future__ import annotations

import numpy as np

_F, _I = np.float64, np.int64
SLOT = (
    np.dtype(  # [L, S]; see `Cache` and `SimulatedLink` for what each is. pledged and barred hold until when: a stamp
        [(name, _F) for name in ("last_used", "ready", "released")]
        + [(name, _I) for name in ("expert", "pledged", "barred", "fresh")]
    )
)
EXPERT = np.dtype([("slot", _I), ("uses", _F), ("next_use", _F)])  # [L, E]
QUEUED = np.dtype([("layer", _I), ("expert", _I), ("since", _F)])  # [Q]
TURN = np.dtype([("slot", _I), ("missed", _I), ("late", _I)])  # [E] each expert of the request at hand
CLOCK = np.dtype(  # [1]: now, when link and compute unit have done their work, how far the run is, and lengths
    [(name, _F) for name in ("now", "free", "busy", "fetch_s")]
    + [(name, _I) for name in ("leaves", "pass_", "layer", "turn", "queued", "copied")]
)
COPY = np.dtype(  # [N] a copy as it started; early: a prefetch
    [(name, _I) for name in ("pass_", "early", "layer", "expert", "slot", "evicted")] + [("begin", _F), ("end", _F)]
)

__all__ = ["CLOCK", "COPY", "EXPERT", "QUEUED", "SLOT", "TURN"]
