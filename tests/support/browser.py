"""Pages in a headless browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WATCHED = "<script>window.failures=[];onerror=(what)=>{failures.push(String(what))};</script>"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


def seen_in(
    folder: Path, text: str, reader: str, width: int = 1280, seconds: int = 60
) -> dict[str, Any]:
    """Return what a reader's script found in a page, as JSON in an element with the id `seen`; fail
    if the console has any message.

    Args:
        seconds: Time that passes for the page, at most, before it is looked at.
    """
    file = folder / "page.html"
    file.write_text(text.replace("<head>", "<head>" + WATCHED).replace("</body>", reader))
    flags = "--headless --no-sandbox --disable-gpu --dump-dom --enable-logging=stderr"
    flags += f" --virtual-time-budget={1000 * seconds} --window-size={width},900"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={folder}/profile", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert seen is not None, done.stderr[-2000:]
    return json.loads(unescape(seen[1]))
