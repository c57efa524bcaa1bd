"""Calm, offline, repeatable: one thread, no hub, and a visible skip where a test needs hardware that is not here."""

import os
import re

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import shutil

import pytest
import torch
from hypothesis import settings
from pretended_card import PretendedCard

from mobile_nb import Hardware

torch.set_num_threads(1)

# Shared machines have no deadlines worth testing; in CI the same cases are drawn every time.
settings.register_profile("calm", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("calm")

READING = Hardware("a pretended card", link_gb_per_s=20, memory_gb_per_s=500, tflops=50, device_gb=8, measured=True)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_addoption(parser):
    parser.addoption(
        "--pretend-card", action="store_true", help="rehearse the tests marked gpu on a card that is not there"
    )


def pytest_configure(config):
    """Only tests for a card see one, and only where they are asked for: what the others say must not depend on it."""
    asked = [config.option.markexpr or "", *(re.split(r"[/\\]", arg)[-1] for arg in config.args)]
    if config.option.pretend_card or not any("gpu" in each for each in asked):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True, scope="session")
def pretended_card(request):
    if not request.config.getoption("--pretend-card"):
        yield None
        return
    with pytest.MonkeyPatch.context() as patch, PretendedCard().plugged_in(patch) as card:
        patch.setattr("mobile_nb.hardware.SQUARE", 64)
        Hardware.measure()  # every line of it, if not at a card's pace
        patch.setattr(Hardware, "measure", staticmethod(lambda device=None: READING))
        yield card


@pytest.fixture
def card_with_times(pretended_card):
    """For what a pretended card cannot show."""
    if pretended_card is not None:
        pytest.skip("on a pretended card everything happens at once")


def pytest_collection_modifyitems(config, items):
    missing = {}
    if not torch.cuda.is_available() and not config.getoption("--pretend-card"):
        missing["gpu"] = "no CUDA device is seen here; where there is one, make gpu"
    if not any(map(shutil.which, BROWSERS)):
        missing["browser"] = "no Chromium on this machine"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
