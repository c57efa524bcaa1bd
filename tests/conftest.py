"""Calm, offline, repeatable: one thread, no hub, and a visible skip where a test needs hardware that is not here."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import shutil

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# Shared machines have no deadlines worth testing; in CI the same cases are drawn every time.
settings.register_profile("calm", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("calm")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(items):
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = "no CUDA on this machine"
    if not any(map(shutil.which, BROWSERS)):
        missing["browser"] = "no Chromium on this machine"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
