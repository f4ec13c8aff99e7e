"""The front door: ``python -m bench VERB``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from bench.commands import flags
from bench.config import options
from bench.config.command import command

VERBS = {
    "run": "one cell: one method, one model, one sequence length, one world size",
    "sweep": "a grid of cells from YAML; resumes, keeps going past a failed cell",
    "compare": "other implementations of the same methods, beside ours",
    "verify": "the correctness experiment: reference against method, step by step",
    "calibrate": "measures this machine or cluster, for --hardware",
    "theory": "the cost table: as published, as derived, as measured",
    "plan": "what fits: memory by method, and the longest sequence of each",
    "report": "CSV rows in, one HTML page, figures and a table out",
}


def main(arguments: list[str]) -> int:
    """Run one verb and return its exit status; 2 means bad input, and that nothing was started."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {command()} VERB [options]\n")
        print("\n".join(f"  {verb:10}{what}" for verb, what in VERBS.items()))
        print("\nVERB --help explains every flag.")
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in VERBS:
        return _bad_input("VERB", f"unknown verb {verb!r}; valid: {', '.join(VERBS)}")
    try:
        parsed = options.parse(flags.PARSERS[verb](), rest)
        # Only now, as it imports torch: help and mistyped flags must not wait for it.
        action: Callable[[Any], int] = import_module(f"bench.commands.{verb}").main
        return action(parsed)
    except ValueError as error:
        return _bad_input(verb, str(error))
    except KeyboardInterrupt:
        return 130


def _bad_input(verb: str, message: str) -> int:
    print(f"{command()} {verb}: {message}", file=sys.stderr)
    return 2


def console() -> int:
    """Run the console command; return its exit status."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(console())
