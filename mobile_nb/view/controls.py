"""The controls of the gamma explorer, and the configuration that they ask for. Knows nothing about text or threads."""

from __future__ import annotations

from dataclasses import replace

import ipywidgets as widgets

from ..hardware import PRESETS
from ..policies import Fraction
from ..runtime.config import MobileConfig
from ..runtime.engine import Engine
from ..vocabulary import MobileError

PACES = {"as the card would write": 1.0, "4 times slower": 4.0, "16 times slower": 16.0, "as fast as it can": 0.0}
WORDS = {"description_width": "initial"}


class Controls:
    """Widgets that start as the engine is; nothing happens to the engine here.

    Attributes:
        prompt, gamma, fraction, slots, link, pace: ipywidgets.   box: all of them but the prompt, laid out.

    Raises:
        MobileError: the engine's system has no gamma to move.
    """

    def __init__(self, engine: Engine, prompt: str):
        if engine.gamma is None:
            raise MobileError(
                "GammaExplorer needs a system with a gamma, such as systems.mobile(), and this engine has none."
            )
        about, wide = engine.trace.conditions, {"width": "100%"}
        self.prompt = widgets.Textarea(
            value=prompt, placeholder="Text that the model should continue", continuous_update=False, layout=wide
        )
        self.prompt.layout.height = "4.6em"
        self.gamma = widgets.FloatSlider(
            value=engine.gamma, min=0.0, max=1.0, step=0.01, description="γ", continuous_update=False, layout=wide
        )
        top_k, count = about["top_k"], engine.config.count
        run = count.run("little", 0, top_k)[0] if isinstance(count, Fraction) else top_k
        self.fraction = _choice("little model", {f"{k} of {top_k} experts": k / top_k for k in range(1, top_k + 1)})
        self.fraction.value, self.fraction.disabled = run / top_k, not isinstance(count, Fraction)
        self.slots = widgets.BoundedIntText(
            value=engine.slots, min=1, max=about["experts"], description="slots a layer", style=WORDS
        )
        self.slots.layout.width = "11em"
        here = "this machine, measured" if engine.measured else engine.hardware.name
        cards = {here: engine.hardware} | {name: card for name, card in PRESETS.items() if card != engine.hardware}
        self.link = _choice("link", {f"{name}, {card.link_gb_per_s:g} GB/s": card for name, card in cards.items()})
        self.pace = _choice("pace", PACES)
        self.link.disabled = self.pace.disabled = engine.measured  # a real card has its own
        others = widgets.HBox([self.fraction, self.slots, self.link, self.pace])
        others.layout = widgets.Layout(flex_flow="row wrap", width="100%")
        self.box = widgets.VBox([self.gamma, others])

    def config(self, engine: Engine) -> MobileConfig:
        """The engine's configuration with gamma, fraction and slots as they are set here."""
        now = engine.config
        changed = {"keep": replace(now.keep, gamma=self.gamma.value)}
        if not self.fraction.disabled and "fraction" in self.changes(engine):
            changed["count"] = replace(now.count, fraction=self.fraction.value)
        if self.slots.value != engine.slots:
            changed |= {"slots": self.slots.value, "budget_gb": None}
        return replace(now, **changed)

    def changes(self, engine: Engine) -> dict[str, str]:
        """What is set here and not in force, in words, by name: fraction, slots, link."""
        found = {}
        top_k, count = engine.trace.conditions["top_k"], engine.config.count
        if not self.fraction.disabled:
            run, wanted = count.run("little", 0, top_k)[0], round(self.fraction.value * top_k)
            if run != wanted:
                found["fraction"] = f"little model {run} → {wanted} experts"
        if self.slots.value != engine.slots:
            found["slots"] = f"slots {engine.slots} → {self.slots.value}"
        if self.link.value != engine.hardware:
            found["link"] = f"link {engine.hardware.name} → {self.link.value.name}"
        return found


def _choice(description: str, options: dict) -> widgets.Dropdown:
    return widgets.Dropdown(
        options=list(options.items()), description=description, style=WORDS, layout={"width": "auto"}
    )


__all__ = ["Controls"]
