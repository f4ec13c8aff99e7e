"""``python -m bench hardware``: list the hardware profiles, or print one with comments."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from bench.hardware import commented, profile_file
from bench.hardware.profiles import GIB, PROFILES
from bench.hardware.sources import KINDS, source
from bench.hardware.speeds import Speeds

_NOTE = """The last columns count the fields of speeds by what they rest on. `hardware NAME` prints
a profile with the source of every field; a YAML file of your own is a profile too."""


def main(parsed: Any) -> int:
    """Print the list, or print or write one profile; return 0.

    Raises:
        ValueError: there is no such profile, or the file cannot be written.
    """
    if not parsed.name:
        if parsed.out:
            raise ValueError(f"out = {parsed.out} needs a profile; valid: hardware NAME --out FILE")
        print(table())
        print(f"\n{_NOTE}")
        return 0
    text = commented.text(parsed.name)
    if not parsed.out:
        print(text, end="")
        return 0
    out = Path(parsed.out)
    profile_file.check_name(out)
    profile_file.check_writable(out)
    profile_file.write_text(text, out)
    print(f"{out}: {parsed.name}")
    return 0


def table() -> str:
    """Return the built-in profiles as an aligned table."""
    rows = [["profile", "GPU memory", "GPUs per node", "device", "speeds", *KINDS]]
    for name, profile in PROFILES.items():
        memory = f"{profile.memory_bytes / GIB:.1f} GiB"
        node = (name, memory, str(profile.gpus_per_node), profile.device)
        counts = [str(_count(name, kind)) if profile.speeds else "-" for kind in KINDS]
        rows.append([*node, "yes" if profile.speeds else "no", *counts])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _count(name: str, kind: str) -> int:
    """Return the number of fields of a profile's speeds that rest on a kind of source."""
    return sum(source(name, field.name).startswith(kind) for field in fields(Speeds))
