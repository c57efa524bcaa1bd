"""What a prefetcher is asked, and when."""

from __future__ import annotations

from typing import Protocol

from ...vocabulary import Wanted
from ..view import View


class Prefetch(Protocol):
    """Asked with layer -1 before a pass, and then after each layer's routing is known.

    One that has `revises = True` looks at the device (`View.resident`, `View.outcomes`), and each of its answers takes
    the place of all that still waits for the link. A replay asks it while it plays; others it asks beforehand.
    """

    def wanted(self, layer: int, view: View) -> list[Wanted]: ...


__all__ = ["Prefetch"]
