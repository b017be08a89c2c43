"""The documentation as a site: every page and public name, the executed notebook, and nothing loaded from elsewhere."""

import functools
import json
import re
import sys
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import warm
from browser import chromium, watched_page
from test_public import NAMES

from tools.docs_site import NOTEBOOK, PUBLIC

ROOT = Path(__file__).parent.parent
SCENES = 11  # as many as the notebook needs
DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
LOADED = re.compile(
    r"""<(?:link|script|img|iframe|source)\b[^>]*?\b(?:href|src)=["']?([^"'\s>]+)|url\(["']?([^"')]+)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `make docs` does; a link that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("docs")
    options = ["--site", folder / "site", "--work", folder / "work", "--scenes", SCENES]
    done = warm.run([sys.executable, "-m", "tools.docs_site", *options], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_every_document_is_a_page(site):
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")]:
        page = path.with_name("index" if path.name == "README.md" else path.stem).relative_to(ROOT)
        assert (site / f"{page}.html").is_file(), path
    assert len(list((site / "gallery" / "samples").rglob("*.js"))) == SCENES
    assert '<a href="../gallery/index.html"' in (site / "docs" / "build.html").read_text()


def test_the_reference_has_every_public_name(site):
    assert set(PUBLIC) == set(NAMES)
    for module, names in NAMES.items():
        page = (site / "reference" / f"{module}.html").read_text()
        lacking = [name for name in names.split() if f'id="{module}.{name}"' not in page]
        assert set(lacking) <= {"__version__"}
    assert 'href="patchmint.errors.html#patchmint.errors.InputError"' in (site / "reference/patchmint.html").read_text()


def test_the_notebook_runs_and_is_committed_without_outputs(site):
    cells = [cell for cell in json.loads((ROOT / NOTEBOOK).read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    page = (site / NOTEBOOK).with_suffix(".html").read_text()
    assert page.count("data:image/png") == 3  # two texts, and the plot
    assert "torch.Size([8, 1, 3, 336, 336])" in page


def test_nothing_is_loaded_from_elsewhere(site):
    found = [
        (path.name, address)
        for path in [*site.rglob("*.html"), *site.rglob("*.css")]
        for addresses in LOADED.findall(path.read_text())
        for address in addresses
        if re.match(r"(\w+:)?//", address)
    ]
    assert found == []


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder):
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.browser
def test_the_site_in_a_browser(site):
    """Each page loads to the end, its search's worker and index too: left earlier, it would break off requests."""
    with served(site) as url, chromium() as browser:
        with watched_page(browser, url, **DESK) as (page, _):
            page.goto(url + "index.html", wait_until="networkidle")
            page.get_by_placeholder("Search").press_sequentially("coverage")
            page.locator(".md-search-result__link").first.wait_for()
            page.keyboard.press("Escape")
            page.get_by_role("link", name="Gallery", exact=True).first.click()
            page.locator(".card").nth(SCENES - 1).wait_for()
            page.wait_for_load_state("networkidle")
        with watched_page(browser, url, **PHONE) as (page, _):
            for name in ("index", "docs/build", "examples/first_labels", "reference/patchmint.training"):
                page.goto(f"{url}{name}.html", wait_until="networkidle")
                assert page.evaluate("document.documentElement.scrollWidth") == PHONE["viewport"]["width"], name
