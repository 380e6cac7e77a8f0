"""Pages in Debian's Chromium, driven by Playwright; what they ask the network for is an error."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZE = {"width": 1280, "height": 800}


def chromium() -> str | None:
    """The path of a Chromium on this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Generator[Browser]:
    """A headless browser.

    Raises:
        FileNotFoundError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        raise FileNotFoundError("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        # a container's root has no namespaces for the sandbox, and its /dev/shm is small
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        found = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield found
        finally:
            found.close()


@contextmanager
def opened(browser: Browser, file: Path, **options: Any) -> Generator[Page]:
    """A page of a file.

    Args:
        browser: the browser.
        file: to be opened.
        options: of the browser's context, `color_scheme` for example.

    Raises:
        AssertionError: the page asked for anything but the file, or one of its scripts failed.
    """
    context = browser.new_context(viewport=SIZE, offline=True, **options)
    wrong: list[str] = []
    own = file.resolve().as_uri()

    def follow(route: Any) -> None:
        if route.request.url.partition("#")[0] == own:
            route.continue_()
        else:
            wrong.append(f"asked for {route.request.url}")
            route.abort()

    context.route("**/*", follow)
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.goto(own)
    try:
        yield page
        assert not wrong, "; ".join(wrong)
    finally:
        context.close()
