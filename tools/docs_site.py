"""Builds the documentation as a site, with a gallery of demo scenes and the executed notebook: `make docs`.

    python -m tools.docs_site --site out/site --work out/docs

This is also the hook that mkdocs.yml names: it gives MkDocs the repository's files under their own paths, and pages for
the public names.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.commands.build import build as build_site
from mkdocs.config import load_config
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
NOTEBOOK = "examples/first_labels.ipynb"
PUBLIC = ("patchmint", "patchmint.training", "patchmint.geometry", "patchmint.interfaces", "patchmint.errors")
PAGES = ("*.md", "docs/**/*", "examples/*")


class NotebookPage(File):
    """A page under a notebook's name, so that links to the notebook lead to it."""

    def is_documentation_page(self) -> bool:
        """Say that it is rendered, not copied."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace docs/ by what the site has: the repository's pages, the gallery, a page for each public module."""
    work = Path(config.extra["work"]).absolute()
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for path in sorted({path for pattern in PAGES for path in ROOT.glob(pattern) if path.is_file()}):
        if (name := path.relative_to(ROOT).as_posix()) != NOTEBOOK:
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for path in sorted((work / "gallery").rglob("*.*")):
        files.append(File(path.relative_to(work).as_posix(), str(work), config.site_dir, config.use_directory_urls))
    page = NotebookPage(NOTEBOOK, None, config.site_dir, config.use_directory_urls)
    page.content_string = "\n\n".join(_markdown(json.loads((work / NOTEBOOK).read_text())))
    files.append(page)
    for module in PUBLIC:
        files.append(File.generated(config, f"reference/{module}.md", content=_reference(module)))
    return files


def _reference(module: str) -> str:
    names = [name for name in import_module(module).__all__ if not name.startswith("_")]
    own = f"# {module}\n\n::: {module}\n    options: {{members: false, show_root_heading: false, heading_level: 1}}\n"
    return own + "".join(f"\n::: {module}.{name}\n" for name in names)


def _markdown(notebook: Mapping[str, Any]) -> Iterator[str]:
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
            continue
        yield f"```python\n{source}\n```"
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "text/html" in data:
                yield f"<div>{''.join(data['text/html'])}</div>"
            elif "image/png" in data:
                yield f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
            elif output.get("name") == "stdout":  # stderr names files of this machine
                yield f"```text\n{''.join(output['text'])}```"


def build_gallery(work: Path, scenes: int = 24) -> Path:
    """Build some demo scenes into WORK/out/demo, as in a clone, and WORK/gallery from them; returns the latter.

    A build that is there already is kept.
    """
    from patchmint import build
    from patchmint.datasets.dataset import open_dataset
    from patchmint.demo import DEMO_SEED
    from patchmint.demo.dataset import obtain_scenes
    from patchmint.errors import DemoWarning
    from patchmint.inspection.gallery.folder import write_gallery
    from patchmint.inspection.gallery.site import GallerySettings, Site

    demo, gallery = work / "out" / "demo", work / "gallery"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DemoWarning)
        obtain_scenes(demo / "scenes", seed=DEMO_SEED, count=scenes, progress=lambda _: None)
        source = {"kind": "coco", "uri": str(demo / "scenes"), "texts": "caption"}
        build({"source": source, "output": {"uri": str(demo / "dataset")}, "models": "demo"})
        write_gallery(Site(open_dataset(str(demo / "dataset")), GallerySettings()), gallery, force=True)
    return gallery


def _execute(executed: Path) -> None:
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    executed.parent.mkdir(parents=True, exist_ok=True)
    encrypted = Config(KernelManager={"transport_encryption": "required"})  # without, the kernel warns
    resources = {"metadata": {"path": str(executed.parent)}}
    client = NotebookClient(notebook, timeout=300, startup_timeout=300, resources=resources, config=encrypted)
    client.execute(env=os.environ | {"IPYTHONDIR": str(executed.parent / ".ipython")})
    nbformat.write(notebook, executed)


def main() -> None:
    """Build the site."""
    parser = argparse.ArgumentParser(description="Builds the documentation as a site.")
    parser.add_argument("--site", type=Path, default=ROOT / "out" / "site", help="where to")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "docs", help="where the demo is built and kept")
    parser.add_argument("--scenes", type=int, default=24, help="scenes of the gallery")
    arguments = parser.parse_args()
    site, work = arguments.site.absolute(), arguments.work.absolute()
    build_gallery(work, arguments.scenes)
    _execute(work / NOTEBOOK)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(site), extra={"work": str(work), "generator": False})
    config.plugins.on_startup(command="build", dirty=False)
    build_site(config)
    config.plugins.on_shutdown()
    print(f"open {site}/index.html; search needs a server: python -m http.server --bind 127.0.0.1 --directory {site}")


if __name__ == "__main__":
    main()
