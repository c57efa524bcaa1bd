"""A real JupyterLab on a copy of the notebooks, and a headless Chromium beside it."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
QUIET = {  # Lab's settings: every cell is in the page, wherever it is scrolled to, and no news are fetched
    "notebook-extension/tracker": '{"windowingMode": "none"}',
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}


@pytest.fixture(scope="session")
def screenshots():
    folder = ROOT / "artifacts" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Address of a notebook: a function of its name."""
    home = tmp_path_factory.mktemp("lab")
    notebooks, settings = home / "notebooks", home / "settings" / "@jupyterlab"
    notebooks.mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(path, notebooks)
    for path in notebooks.glob("*.ipynb"):
        clear(path)
    for name, text in QUIET.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_WORKSPACES_DIR")
    environment = os.environ | {name: str(home / name) for name in own}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(settings.parent), "JUPYTER_TOKEN": token}
    with (home / "log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
        command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={notebooks}"]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/api", server, home / "log")
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}?token={token}"
    finally:
        server.terminate()  # which shuts its kernels down
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def clear(path):
    """Takes the outputs out, so that what is seen was written in this run."""
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


def wait_for(address, server, log, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not answer:\n{log.read_text()[-3000:]}")


@pytest.fixture
def page(screenshots):
    """An empty page of a fresh browser; errors of the page's own scripts fail the test. It is kept as it was left."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    problems = []
    with playwright.sync_playwright() as started:
        program = next(filter(None, map(shutil.which, BROWSERS)))
        browser = started.chromium.launch(executable_path=program, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 1500})
            page.set_default_timeout(240_000)  # of one step, on a machine with other work
            page.on("pageerror", lambda problem: problems.append(str(problem)))
            yield page
            page.screenshot(path=screenshots / "last.png")
        finally:
            browser.close()
    assert not problems, problems
