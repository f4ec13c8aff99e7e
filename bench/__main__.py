"""Entry point of the command line: ``python -m bench VERB``."""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from bench.commands.output import WhileRead
from bench.config.command import command
from bench.config.launched import launched_world_size
from bench.runner import signals
from odysseus.io.files import NotSaved

VERBS = {
    "run": "measure one cell: a method, a model, a sequence length, a world size",
    "sweep": "measure a grid of cells; resumes, and continues after a failed cell",
    "compare": "time other implementations of the same methods beside this project's",
    "verify": "train a method and a reference, and compare them step by step",
    "calibrate": "measure this machine or cluster, and write a profile for --hardware",
    "hardware": "list the hardware profiles, or print one as YAML with comments",
    "dry_run": "run any training script without peers, values or a GPU, and count one step",
    "theory": "print the bytes that each method sends: published, derived, on request measured",
    "plan": "find which methods fit in memory, and the longest sequence of each",
    "validate": "predict step times that others published, and say how far off that is",
    "report": "draw one HTML page, figures and a table from CSV rows",
}
_STARTING_WORKERS = ("run", "sweep", "compare", "verify", "calibrate", "theory")
"""Verbs that measure something in processes of their own."""


def main(arguments: list[str], may_fork: bool = False) -> int:
    """Run one verb and return its exit status; 2 means bad input, before anything was started.

    Args:
        may_fork: Whether this process runs no thread and may be forked, so that workers need not
            import everything again.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {command()} VERB [options]\n")
        print("\n".join(f"  {verb:10}{what}" for verb, what in VERBS.items()))
        print("\nVERB --help explains every flag.")
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in VERBS:
        return _bad_input("VERB", f"unknown verb {verb!r}; valid: {', '.join(VERBS)}")
    # Imported here so that signal handlers are set before.
    from bench import pool
    from bench.commands import flags
    from bench.config import options

    pool.may_fork = may_fork
    try:
        parsed = options.parse(flags.PARSERS[verb](), rest)
        # Not imported before, as it imports torch: help and mistyped flags must not wait for it.
        action: Callable[[Any], int] = import_module(f"bench.commands.{verb}").main
        if may_fork and verb in _STARTING_WORKERS and not _starts_nothing(parsed):
            import_module("bench.runner.processes").fork_now()
        return action(parsed)
    except ValueError as error:
        return _bad_input(verb, str(error))
    except (OSError, NotSaved, BrokenExecutor) as error:
        print(f"{command()} {verb}: {error}", file=sys.stderr)
        return 1


def _starts_nothing(parsed: Any) -> bool:
    """Whether nothing is measured, all cells are dry runs, or torchrun or srun has started the
    workers."""
    computes = parsed.dry_run is True or parsed.get("measure") is False
    return computes or launched_world_size() is not None


def _bad_input(verb: str, message: str) -> int:
    """Print one line, in which a word has at most 200 characters, and all 1,500; return the exit
    status."""
    line = re.sub(r"\S{200,}", lambda long: f"{long[0][:199]}…", " ".join(message.split()))
    if len(line) > 1500:
        line = f"{line[:1000]} … {line[-497:]}"  # what is valid comes last
    print(f"{command()} {verb}: {line}", file=sys.stderr)
    return 2


def console() -> int:
    """Run the console command; return its exit status. SIGINT and SIGTERM end it at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    status = 1  # of an exception that nothing catches

    def leave() -> None:
        """End the process before Python gives its signals their default handlers back."""
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)

    atexit.register(leave)  # the first to be registered is the last to be called
    sys.stdout = printed = WhileRead(sys.stdout)
    try:
        status = main(sys.argv[1:], may_fork=True)
    except SystemExit as ended:  # after --help; after a signal, once the workers have ended
        status = int(ended.code or 0)
    printed.flush()
    if printed.failure:
        print(f"{command()}: standard output: {printed.failure.strerror}", file=sys.stderr)
        status = status or 1
    return status


def _end(number: int, _: Any) -> NoReturn:
    """End this process without an exception, which whatever runs now might swallow."""
    with suppress(OSError, RuntimeError):  # a closed pipe; a line that was just being written
        sys.stdout.flush()
    signals.end(number)


if __name__ == "__main__":
    sys.exit(console())
