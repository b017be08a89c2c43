"""A real Chromium, without a window, and pages that note whatever goes wrong or leaves them."""

import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import sync_playwright

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_INSTALL = (
    "no Chromium was found, and the gallery is tested in a real one: as root on Debian `make browser` installs it; "
    f"elsewhere install one of {', '.join(_NAMES)}, or run `.venv/bin/playwright install chromium`"
)


def chromium_path(playwright):
    """Playwright's own Chromium if it is installed, else one on the PATH."""
    own = playwright.chromium.executable_path
    return own if Path(own).is_file() else next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def chromium():
    """Start a browser; it ends with the block."""
    with sync_playwright() as playwright:
        path = chromium_path(playwright)
        assert path is not None, _INSTALL
        # Root, as in CI's containers, has no sandbox; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watch:
    """What a page did that it shouldn't, and every address that it asked for."""

    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def watched_page(browser, allowed, **options):
    """A page in a context of its own; in the end nothing went wrong, and every address began with `allowed`."""
    watch = Watch()
    context = browser.new_context(**options)
    try:
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: watch.problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: watch.problems.append(f"page error: {error}"))
        page.on("dialog", lambda dialog: (watch.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: watch.requests.append(request.url))
        page.on("requestfailed", lambda request: watch.problems.append(f"failed: {request.url}"))
        yield page, watch
        assert not watch.problems, watch.problems
        left = [url for url in watch.requests if not url.startswith(allowed)]
        assert not left, left
    finally:
        context.close()


if __name__ == "__main__":
    with sync_playwright() as running:
        print(chromium_path(running) or sys.exit(_INSTALL))
