"""Numbers to pictures: the only floor with plotly and ipywidgets. Nothing here computes or prints."""
