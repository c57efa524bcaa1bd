"""What the figures of a table depend on: the machine, the card, versions and options."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

import torch

from ..hardware import Hardware
from ..runtime.offloaded import DEFAULT_HARDWARE, reading


def conditions(options: dict, device: torch.device) -> dict:
    """Everything that the figures depend on."""
    measured = device.type == "cuda"
    hardware = reading(str(device)) if measured else Hardware.preset(DEFAULT_HARDWARE)
    return {
        "figures": "measured" if measured else "a rehearsal: tiny shapes, simulated time; nothing here is measured",
        "hardware": asdict(hardware),
        "driver": _driver() if measured else None,
        "cuda": torch.version.cuda,
        **{name: _version(name) for name in ("mobile_nb", "torch", "transformers", "accelerate")},
        "python": platform.python_version(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "options": options,
        "scripted": "random weights: which tokens fall back, and where a row names it, the routing",
    }


def _driver() -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


__all__ = ["conditions"]
