"""What the site takes from outside docs/: the README as its first page, and whatever pages link to.

Links stay those of the repository: docs/ and the files around it become one tree here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
_OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the README, CONTRIBUTING.md, and every file that a page has a link to."""
    readme = (ROOT / "README.md").read_text()
    linked = set(re.findall(r"\]\(((?!docs/|http)[^)#]+)", readme))
    for page in files.documentation_pages():
        linked |= set(_OUTSIDE.findall(page.content_string))
    files.append(File.generated(config, "index.md", content=readme))
    for name in sorted(linked):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as seen from the one tree."""
    inside = "docs/" if page.file.src_uri in ("index.md", "CONTRIBUTING.md") else "../"
    return markdown.replace(f"]({inside}", "](")
