"""Question 4: what to do about an expert that is asked for and not on the device?

Asked only for single tokens; for the prompt alone whether the host computes it. Anything but waiting, here or on the
host, changes the text.
"""

from .ask import Miss
from .buddy import Buddies, Buddy
from .host import OnHost
from .low import AllLow, LowBits
from .plain import Anybody, Drop, Wait
from .score import Foretold, NearScore, NextRanked

__all__ = [
    "AllLow",
    "Anybody",
    "Buddies",
    "Buddy",
    "Drop",
    "Foretold",
    "LowBits",
    "Miss",
    "NearScore",
    "NextRanked",
    "OnHost",
    "Wait",
]
