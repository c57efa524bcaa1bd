"""A pandas frame that says, where a notebook shows it, under which conditions its numbers hold."""

from __future__ import annotations

import html

import pandas as pd


class Report(pd.DataFrame):
    """A frame with a caption from its `.attrs`; what is made of it is a plain frame again."""

    @property
    def _constructor(self):
        return pd.DataFrame

    def _repr_html_(self) -> str:
        about = self.attrs
        said = [about.get("model"), about.get("slots_chosen"), about.get("time")]
        shares = {"hit_rate": "{:.1%}".format, "gb_moved": "{:.3f}".format}
        table = self.to_html(index=False, formatters=shares, border=0)
        return f"{table}<small>{html.escape('; '.join(str(one) for one in said if one))}</small>"


__all__ = ["Report"]
