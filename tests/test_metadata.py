"""What the project says about itself in several places agrees: pyproject.toml, environment.yml, the package."""

import importlib
import os
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
CONDA_NAMES = {"torch": "pytorch"}  # what conda-forge calls otherwise


def bounds(requirements, names=None):
    """{name: set of bounds} of requirement strings, renamed by `names`."""
    parsed = map(Requirement, requirements)
    return {(names or {}).get(r.name, r.name): {str(bound) for bound in r.specifier} for r in parsed}


def conda():
    return bounds(entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str))


def test_conda_environment_has_the_names_and_bounds_of_pyproject():
    extras = PROJECT["optional-dependencies"]
    wanted = bounds([*PROJECT["dependencies"], *extras["lab"], *extras["test"]], CONDA_NAMES)
    found = conda()
    assert found.pop("python") == {PROJECT["requires-python"]}
    assert found.pop("pip") == set()
    assert found == wanted


def test_conda_takes_nothing_from_pip_but_this_checkout():
    (pip,) = [entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-e ."]
    assert ENVIRONMENT["channels"] == ["conda-forge"]


def test_dev_extra_is_lab_and_test():
    (dev,) = map(Requirement, PROJECT["optional-dependencies"]["dev"])
    assert dev.name == PROJECT["name"]
    assert dev.extras == {"lab", "test"}


def test_version_is_the_same_everywhere():
    assert version("mobile_nb") == PROJECT["version"]
    package = importlib.import_module("mobile_nb")
    assert getattr(package, "__version__", PROJECT["version"]) == PROJECT["version"]


def test_script_points_at_something_callable():
    module, _, name = PROJECT["scripts"]["mobile-nb"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_files_that_pyproject_names_exist():
    for name in (PROJECT["readme"], *PROJECT["license-files"]):
        assert (ROOT / name).is_file(), f"pyproject.toml names {name}, which is not there."


@pytest.mark.skipif(os.name != "posix", reason="Windows has no executable bit")
def test_ci_script_can_be_executed():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
