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

DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


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


def until(page, condition):
    """Wait; playwright's own way evaluates strings in the page, which its policy forbids."""
    for _ in range(800):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"never: {condition}; {page.locator('#hits').inner_text()}")


def settle(page):
    page.wait_for_timeout(30)  # until a changed address has been noticed
    until(page, "document.querySelector('main').getAttribute('aria-busy') === 'false'")
    until(page, "[...document.querySelectorAll('.card')].every(c => c.querySelector('.card-key bdi'))")
    until(page, "document.getElementById('detail-key')?.textContent !== '…'")
    until(page, "[...document.images].filter(i => i.checkVisibility()).every(i => i.complete)")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def small_controls(page):
    """What of a gallery's page can be seen, and is too small for a finger."""
    return page.locator("button, select, summary, input:not([type=checkbox])").evaluate_all(
        "all => all.filter(e => e.checkVisibility()).map(e => [e.getBoundingClientRect(), e.outerHTML])"
        ".filter(([r]) => r.height < 40 || r.width < 30).map(([, html]) => html.slice(0, 90))"
    )


if __name__ == "__main__":
    with sync_playwright() as running:
        print(chromium_path(running) or sys.exit(_INSTALL))
