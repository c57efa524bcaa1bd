"""What a policy learned beforehand: arrays that never change, and so values, like the policies that hold them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False, repr=False)
class Knowledge:
    """Base of the frozen dataclasses whose fields are arrays. Two of a kind with the same contents are equal.

    Its repr names shapes and a digest of the contents, because reports and traces tell policies apart by their repr.
    """

    def __post_init__(self):
        for field in fields(self):
            array = np.array(getattr(self, field.name))
            array.setflags(write=False)
            object.__setattr__(self, field.name, array)

    @cached_property
    def digest(self) -> str:
        """Of all contents."""
        found = hashlib.sha256()
        for field in fields(self):
            array = getattr(self, field.name)
            found.update(f"{field.name} {array.dtype} {array.shape}".encode())
            found.update(array.tobytes())
        return found.hexdigest()

    def __eq__(self, other) -> bool:
        return type(other) is type(self) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        first = getattr(self, fields(self)[0].name)
        return f"{type(self).__name__}({' x '.join(map(str, first.shape))}, {self.digest[:8]})"


__all__ = ["Knowledge"]
