"""Help of a verb: the flags that it reads, with types in words, and an example."""

from __future__ import annotations

from argparse import REMAINDER, SUPPRESS, Action
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import DefaultHelpFormatter

EXAMPLES = {
    "run": "run --method ulysses --world_size 4 --seq_len 4096 --activation_checkpointing",
    "sweep": "sweep --config sweeps/example.yml --rounds 3 --out results/mine.csv",
    "compare": "compare --peers megatron_tp,deepspeed_ulysses --world_size 2 --seq_len 2048",
    "verify": "verify --method odysseus --world_size 4 --seq_len 512 --tiled_mlp_compute",
    "calibrate": "calibrate --world_size 4 --out profile.yml",
    "hardware": "hardware h100-80g --out mine.yml",
    "dry_run": "dry_run --world_size 64 --hardware h100-80g train.py --batch_size 1",
    "theory": "theory --model.name_or_path llama3-8b --world_size 8 --seq_len 131072",
    "plan": "plan --model.name_or_path llama3-8b --world_size 8 --seq_len 131072",
    "validate": "validate --only ALST --out results/mine.csv",
    "report": "report --rows results/mine.csv --out results/mine",
}
"""A command of each verb."""
_OF_PREDICTIONS = {"dry_run", "hardware", "rank"}
_OF_STEPS = {"steps", "warmup_steps", "rounds", "log", "log_dir"}
_OF_RINGS = {"ring_parallel_size", "ring_order", "ring_backend", "axis_order"}
_NOT_READ: dict[str, set[str]] = {
    "verify": {*_OF_PREDICTIONS, *_OF_STEPS, "router_load"} - {"steps"},
    "compare": {
        *(*_OF_PREDICTIONS, *_OF_STEPS, *_OF_RINGS, "sequence_parallel_size"),
        *("tensor_parallel_size", "expert_parallel_size", "router_load"),
        *("gradient_accumulation_steps", "data.pack", "model.implementation"),
    },
    "theory": {*_OF_PREDICTIONS, *_OF_STEPS} - {"steps", "warmup_steps"},
    "plan": {*_OF_STEPS, "dry_run", "rank", "device", "numa_binding", "seed", "timeout_s"},
}
"""Options of a run that a verb takes, so that all verbs read the same files, but does not read."""
_CALIBRATED = ("config", "help", "model", "world_size", "dtype", "device", "timeout_s")
_CALIBRATED += ("links_of", "out")


def is_read(verb: str, option: str) -> bool:
    """Return whether a verb's result depends on an option.

    Args:
        option: Dotted name of the option.
    """
    if verb == "calibrate":
        return option.partition(".")[0] in _CALIBRATED
    return option not in _NOT_READ.get(verb, ())


def values(hint: Any) -> Iterator[str]:
    """Yield the values that an option of some type may have, as a person writes them; exact words
    are in backticks."""
    if get_origin(hint) is Literal:
        yield from (f"`{value}`" for value in get_args(hint))
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from values(part)
    elif get_origin(hint) is list:
        yield f"a list of {'integers' if hint == list[int] else 'these'}"
    elif hint is bool:
        yield from ("`true`", "`false`")
    elif hint is not NoneType:
        yield {int: "an integer", float: "a number", str: "text"}[hint]


def default_in_words(value: Any) -> str:
    """Return a default value as a person writes it; exact values are in backticks."""
    if value is None:
        return "the model's"
    if value == "":
        return "empty"
    if isinstance(value, list):
        return ", ".join(f"`{one}`" for one in value) or "none"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def type_of(action: Action) -> Any:
    """Return the type of a flag's value; None for a flag without one."""
    return getattr(action, "_typehint", None) or action.type


def epilog(verb: str, command: str) -> str:
    """Return the end of a verb's help.

    Args:
        command: Start of a command line.
    """
    example = f"\n\nexample:\n  {command} {EXAMPLES[verb]}" if verb in EXAMPLES else ""
    return f"A flag of true or false without a value is true.{example}\n"


class HelpFormatter(DefaultHelpFormatter):
    """Formats a verb's help."""

    def add_argument(self, action: Action) -> None:
        """Add a flag unless the verb does not read it."""
        if action.metavar == "{true,false,null}":
            action.metavar = "{true,false}"
        if is_read(self._prog.rpartition(" ")[2], action.dest):
            super().add_argument(action)

    def _get_help_string(self, action: Action) -> str:
        hint = type_of(action)
        if action.dest in ("config", "help", "print_config") or action.default == SUPPRESS:
            return super()._get_help_string(action)
        if action.nargs == REMAINDER:
            return action.help or ""
        default = f"default: {default_in_words(action.default)}"
        if hint and not action.metavar:  # which would list the values
            default = f"{', '.join(dict.fromkeys(values(hint)))}; {default}"
        return f"{action.help} ({default})".replace("`", "").replace("%", "%%")

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        hint = type_of(action)
        named = {int: "N", float: "X", str: "TEXT", bool: "{true,false}"}
        for part in (hint, *get_args(hint)[:1]):  # without the list that a sweep takes instead
            if part in named:
                return named[part]
            if get_origin(part) is Literal and len(get_args(hint)) == 2:
                return f"{{{','.join(map(str, get_args(part)))}}}"
        return "FILE" if action.dest == "config" else "VALUE"

    def _format_action_invocation(self, action: Action) -> str:
        """Name a flag once: jsonargparse also has FLAG+, which appends to a list."""
        given = action.option_strings
        action.option_strings = [flag for flag in given if not flag.endswith("+")]
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = given

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)
