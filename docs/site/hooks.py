"""Add files outside docs/ to the site: four pages, the README first, and all files they link to.

Links in the sources are those of the repository; here its pages and files become one tree.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
_OUTSIDE = ("README.md", "CONTRIBUTING.md", "results/README.md", "results/LOG.md")
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/, and every other file that a page has a link to."""
    pages = [f"docs/{page.src_uri}" for page in files.documentation_pages()]
    linked = {
        _resolved(page, link)
        for page in (*pages, *_OUTSIDE)
        for link in _LINK.findall((ROOT / page).read_text())
    }
    for name in sorted({*_OUTSIDE, *linked}):
        if not name.startswith("docs/"):
            source = str(ROOT / name)
            files.append(File.generated(config, _in_site(name), abs_src_path=source))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as seen from the one tree."""
    at = page.file.src_uri
    of = next((name for name in _OUTSIDE if _in_site(name) == at), f"docs/{at}")
    folder = os.path.dirname(at) or "."
    return _LINK.sub(
        lambda link: os.path.relpath(_in_site(_resolved(of, link[1])), folder), markdown
    )


def _resolved(page: str, link: str) -> str:
    """The file in the repository that a page's link means."""
    return os.path.normpath(os.path.join(os.path.dirname(page), link))


def _in_site(name: str) -> str:
    """Path in the site of a file of the repository."""
    return "index.md" if name == "README.md" else name.removeprefix("docs/")
