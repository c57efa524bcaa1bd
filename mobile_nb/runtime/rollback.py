"""Takes back what a little pass wrote into the cache, so that the big model can write the same position.

A layer that only grows drops its last position. A layer that forgets (a sliding window) or folds the text into a state
(linear attention, convolutions, compressed keys) is remembered before the pass: by reference where a pass puts new
tensors in the place of old ones, by copy where it writes into them. Knows nothing about experts.
"""

from __future__ import annotations

import torch
import transformers

from ..vocabulary import MobileError
from .static import FixedCache

WRITTEN = ("conv_states", "recurrent_states")  # fields that a pass writes in place
WINDOW = "DynamicSlidingWindowLayer"  # that of a layer that keeps the last positions alone
GROWING = "DynamicLayer"  # transformers' class of a layer that keeps every position, and nothing beside
WINDOWS_SINCE = (5, 23)  # a window that records its past shows only what masks know of; 5.15 and 5.17 do not


class Rollback:
    """One cache, before a pass that may have to be taken back.

    Args:
        cache: a transformers cache after the prompt.

    Attributes:
        plain: every layer keeps every position and nothing beside.
    """

    def __init__(self, cache):
        self.cache, self._counts = cache, isinstance(cache, FixedCache)
        try:
            self._crops = [_crops(layer) for layer in cache.layers]
        except (AttributeError, TypeError) as problem:
            raise MobileError(_refusal(cache)) from problem
        self.plain = self._counts or grows(cache)
        self._kept: list[tuple[object, dict]] = []
        self._versions: list[tuple[torch.Tensor, int]] = []

    def remember(self) -> None:
        """Notes the cache as it is. Costs nothing where every layer only grows."""
        if self.plain:
            return
        self._versions = []
        forgetful = [layer for layer, crops in zip(self.cache.layers, self._crops, strict=True) if not crops]
        self._kept = [(part, self._noted(vars(part))) for part in [self.cache, *forgetful]]

    def take_back(self) -> None:
        """Makes the cache what it was.

        Raises:
            MobileError: a cache that keeps no past and writes over it, such as a static one.
        """
        if self._counts:
            self.cache.crop(-1)
            return
        strange = next((layer for layer in self.cache.layers if hasattr(layer, "max_cache_len")), None)
        if strange is not None or any(tensor._version != version for tensor, version in self._versions):
            raise MobileError(_refusal(self.cache))
        for part, noted in self._kept:
            vars(part).clear()
            vars(part).update(noted)
        for layer, crops in zip(self.cache.layers, self._crops, strict=True):
            if crops:
                layer.crop(-1)

    def _noted(self, value, name: str = ""):
        if isinstance(value, dict):
            return {key: self._noted(each, name or key) for key, each in value.items()}
        if isinstance(value, list):
            return [self._noted(each, name) for each in value]
        if not isinstance(value, torch.Tensor):
            return value
        if name in WRITTEN:
            return value.clone()
        if not value.is_inference():
            self._versions.append((value, value._version))
        return value


class Cropping:
    """One cache whose layers all drop as many of their last positions as they are told.

    Sliding windows do where they hold on to what leaves the window until they are cropped, as they do from here on.

    Raises:
        MobileError: another kind of cache. Linear attention folds what it reads into a state.
    """

    def __init__(self, cache):
        if isinstance(cache, FixedCache):
            self.layers = [cache]  # all of them at once
            return
        self.layers = [layer for layer in cache.layers if getattr(layer, "is_initialized", True)]
        windows = [layer for layer in self.layers if type(layer).__name__ == WINDOW]
        if type(cache).__name__ != "DynamicCache" or not all(_crops(x) or x in windows for x in self.layers):
            raise MobileError(
                "drafted tokens are taken back from the KV cache several at a time, and this model's cache "
                f"({type(cache).__name__}) cannot do that; use its default cache, or a system without drafts, such as "
                "systems.mobile()."
            )
        if windows and _version(transformers.__version__) < WINDOWS_SINCE:
            since = ".".join(map(str, WINDOWS_SINCE))
            raise MobileError(
                f"drafts over a sliding window need transformers {since} or newer, and this is "
                f"{transformers.__version__}; use a system without drafts, such as systems.mobile()."
            )
        for layer in windows:
            layer.activate_past_recording()

    def take_back(self, positions: int) -> None:
        """Drops the last positions of every layer."""
        for layer in self.layers if positions else []:
            layer.crop(-positions)


def grows(cache) -> bool:
    """Whether every layer of a cache keeps every position and nothing beside."""
    return type(cache).__name__ == "DynamicCache" and all(_crops(layer) for layer in cache.layers)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _refusal(cache) -> str:
    return (
        f"a {type(cache).__name__} cannot take back one token, and a token has to be evicted; use the default dynamic "
        "cache, or a system without a little model, such as systems.on_demand()."
    )


def _crops(layer) -> bool:
    """Whether dropping the last position is all there is to do: a class that only grows, or that says how it crops.
    Some caches hold such a layer for every layer of the model and use few of them."""
    if not getattr(layer, "is_initialized", True):
        return False
    own = type(layer).__name__ == GROWING or "crop" in vars(type(layer))
    return own and not hasattr(layer, "record_past")


__all__ = ["Cropping", "Rollback", "grows"]
