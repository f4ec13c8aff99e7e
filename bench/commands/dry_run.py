"""``python -m bench dry_run SCRIPT``: count a step of any training script, on no GPU."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from bench.hardware import profile_file
from bench.scripted import library
from odysseus.io import files

_BEGINNING = b'{\n  "world": {'
"""Beginning of a file that this verb writes."""


def main(parsed: Any) -> int:
    """Run the script until the counted optimizer step has ended, and print what that took; return
    0, or 1 if the script failed.

    Raises:
        ValueError: there is no such script, profile or compiler, or a number is out of bounds.
    """
    _check(parsed)
    if parsed.device == "cuda":
        library.load()
    # Imports PyTorch, which must find the fake GPU loaded.
    from bench.scripted import report, steps, world
    from bench.simulator.peak import peak_in_words

    known = _clock(parsed)
    here = world.World(
        parsed.rank, parsed.world_size, parsed.ranks_per_node, parsed.device == "cuda"
    )
    name, *arguments = parsed.script
    sys.argv = [name, *arguments]
    with world.only_rank(here) as (device, values):
        meters = steps.Steps(device, parsed.step)
        with meters.metered():
            failed = _failed(name, steps.Enough)
        if failed:
            return 1
        counted = meters.counted()
    results = report.numbers(here, counted, values, known)
    print(report.in_words(results, parsed.hardware))
    if parsed.explain_peak and counted.peak.alive:
        print(peak_in_words(here.rank, counted.peak))
    if parsed.out:
        files.write(Path(parsed.out), json.dumps(results, indent=2) + "\n")
    return 0


def _failed(name: str, enough: type[BaseException]) -> bool:
    """Run a script, or a module, as the main program; print what it fails by.

    Args:
        enough: What ends it once a step is counted.
    """
    try:
        _run(name)
    except enough:
        return False
    except SystemExit as ended:
        return ended.code not in (None, 0)
    except Exception:
        traceback.print_exc()
        return True
    return False


def _run(name: str) -> None:
    if Path(name).is_file():
        sys.path.insert(0, str(Path(name).resolve().parent))
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def _clock(parsed: Any) -> Any:
    """Return the clock of the profile; None without one that has speeds.

    Raises:
        ValueError: the profile is of another device, or has no links for this many ranks.
    """
    from bench.simulator.cost_model import Clock
    from bench.simulator.target import usual_attention

    profile = profile_file.find(parsed.hardware) if parsed.hardware else None
    if profile is None or profile.speeds is None:
        return None
    if profile.device != parsed.device:
        raise ValueError(
            f"hardware = {parsed.hardware} is of device {profile.device}; valid: a profile of "
            f"{parsed.device}, or device = {profile.device}"
        )
    clock = Clock(profile.speeds, usual_attention(profile.speeds), parsed.ranks_per_node)
    if not clock.knows(parsed.world_size):
        raise ValueError(
            f"hardware = {parsed.hardware} has no links for world_size = {parsed.world_size}, "
            f"{parsed.ranks_per_node} ranks per node; valid: what it was calibrated on"
        )
    return clock


def _check(parsed: Any) -> None:
    """Raise ValueError unless the script can be started."""
    if not parsed.script:
        raise ValueError("SCRIPT is missing; valid: SCRIPT.py or the name of a module")
    name = parsed.script[0]
    if not Path(name).is_file() and (name.endswith(".py") or not _is_module(name)):
        raise ValueError(f"SCRIPT = {name} is no file; valid: SCRIPT.py or the name of a module")
    for option, least, most in (
        ("world_size", 1, 2**20),
        ("ranks_per_node", 1, 16),
        ("rank", 0, parsed.world_size - 1),
        ("step", 1, 1000),
    ):
        if not least <= (given := getattr(parsed, option)) <= most:
            raise ValueError(f"{option} = {given}; valid: {least} to {most}")
    if parsed.hardware:
        profile_file.find(parsed.hardware)
    if parsed.out:
        files.check_output("out", Path(parsed.out), "a new file, or one of this verb", _foreign)
    if parsed.device == "cuda" and shutil.which("g++") is None:
        raise ValueError("device = cuda needs a C++ compiler, no g++ here; valid: cpu")


def _foreign(path: Path) -> str:
    with path.open("rb") as file:
        is_known = file.read(len(_BEGINNING)) == _BEGINNING
    return "" if is_known else "it has no counts of a script"


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
