"""What nbval compares in the committed notebooks, and which of them it leaves alone."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the kernels: the same output on every machine

# These want the reader's own CUDA card. Naming one on the command line runs it all the same.
collect_ignore_glob = ["90*.ipynb", "*_gpu.ipynb"]

# Pictures and their scripts carry random element ids; what a cell says in text is compared.
PICTURES = ("text/html", "image/svg+xml", "image/png", "application/javascript", "application/vnd.plotly.v1+json")


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += PICTURES
