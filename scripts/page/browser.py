"""A page of the server in headless Chromium, by playwright; and the server itself in a process of its own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT = 60_000
"""Milliseconds that something on the page may take before it is an error."""

SEARCH = """async sentence => {
    const text = document.getElementById("text"), grid = document.getElementById("grid");
    const begun = performance.now();
    const until = name => new Promise(resolve => new MutationObserver((_, observer) => {
        if (grid.dataset[name] !== sentence) return;
        observer.disconnect();
        requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begun)));
    }).observe(grid, { childList: true, attributes: true }));
    grid.dataset.sentence = grid.dataset.settled = "";
    const painted = until("sentence"), settled = until("settled");
    text.value = sentence;
    document.getElementById("form").requestSubmit();
    return { painted: await painted, settled: await settled, ids: [...grid.children].map(one => one.dataset.id) };
}"""
"""Asks for a sentence as Enter does, and waits until an answer is painted, and until it is certified."""


def why_no_browser() -> str | None:
    """What to install for a browser; None if it is there."""
    if find_spec("playwright") is None:
        return "needs playwright: pip install playwright"
    if not any(map(shutil.which, PROGRAMS)):
        return "needs a browser: apt-get install -y --no-install-recommends chromium fonts-dejavu-core"
    return None


@contextlib.contextmanager
def open_page(url: str, *, width: int = 1100, height: int = 800) -> Iterator[tuple[Any, list[str]]]:
    """A page, and a list that gets what goes wrong on it: errors of scripts, and requests to anybody else.

    Raises:
        ImportError: playwright or a browser is not installed.
    """
    if reason := why_no_browser():
        raise ImportError(reason)
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    program = next(filter(None, map(shutil.which, PROGRAMS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS), timeout=WAIT)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(WAIT)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
            page.on("request", lambda asked: None if _of(asked.url, url) else problems.append(f"asks {asked.url}"))
            page.goto(url)
            page.wait_for_function("() => document.getElementById('status').textContent !== ''")
            yield page, problems
        finally:
            browser.close()


def _of(asked: str, url: str) -> bool:
    return asked.startswith((url, "blob:", "data:"))


@contextlib.contextmanager
def serving(arguments: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of `xmodal serve` with some arguments in a process of its own, and that process.

    Raises:
        RuntimeError: it did not start.
    """
    command = [sys.executable, "-m", "xmodal", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("http://"):
                raise RuntimeError(f"the server did not start: {line}{process.communicate()[1]}")
            yield line.split("/ ")[0], process
        finally:
            process.terminate()
            process.communicate()
