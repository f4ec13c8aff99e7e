"""ArcticTraining's YAML recipes as configurations of a run; docs/recipes.md has the table.

A key is mapped where it has a meaning here. It is ignored where neither the cost of a step nor
its mathematics depend on it. It is refused where running without it would train, or cost,
something else than the recipe asks for. What a recipe leaves out has ArcticTraining's default,
where that has a meaning here.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import yaml

from bench.config.arctic_keys import (
    ASIDE,
    DEFAULTS,
    FIXED,
    MAX_POSITION_EMBEDDINGS,
    REQUIRED,
    RULES,
    SECTIONS,
    ignore,
)
from bench.config.launched import launched_world_size
from odysseus.config import hf_config
from odysseus.config.nested import ModelOptions


def translate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments with what recipes mean in their files' place; a line to print for each recipe.

    Raises:
        ValueError: a recipe has a key or a value that cannot be run, named with what is valid.
    """
    translated, notes = [], []
    is_file = False
    for argument in arguments:
        flag = "--config=" if argument.startswith("--config=") else ""
        file = argument.removeprefix(flag)
        recipe = _read(file) if is_file or flag else None
        if recipe is not None:
            try:
                config, ignored = convert(recipe)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            notes.append(_note(file, ignored))
            argument = flag + json.dumps(config)
        translated.append(argument)
        is_file = file == "--config"
    return translated, notes


def convert(recipe: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recipe as nested fields of a run, and the names of what it says in vain.

    Raises:
        ValueError: a key or a value cannot be run.
    """
    given = dict(_walk(recipe))
    for key, valid in REQUIRED.items():
        if key not in given:
            raise ValueError(f"{key} is missing; valid: {valid}")
    fields: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    for key, value in (DEFAULTS | given).items():
        for name, meant in (RULES.get(key) or ignore)(key, value).items():
            if fields.setdefault(name, meant) != meant:
                other = said_by[name]
                raise ValueError(f"{key} is {value!r}; valid: what {other} says, {fields[name]!r}")
            said_by[name] = key
    ignored = [key for key in given if RULES[key] is None]
    shown = (section if (section := key.partition(".")[0]) in ASIDE else key for key in ignored)
    return _nested(_completed(fields)), list(dict.fromkeys(shown))


def _read(file: str) -> dict[str, Any] | None:
    """The recipe in a file, None if it holds none; what is wrong with it is the parser's to say."""
    try:
        content = yaml.safe_load(Path(file).read_bytes())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(content, dict):
        return None
    data = content.get("data")
    named = content.keys() & {"type", "deepspeed", "scheduler", *ASIDE}
    return content if named or (isinstance(data, dict) and "sources" in data) else None


def _note(file: str, ignored: list[str]) -> str:
    return (
        f"{file} is an ArcticTraining recipe; ignored: {', '.join(ignored) or 'nothing'}; in place "
        "of its data data.path or the built-in text, repeated; the learning rate is constant, "
        "weight decay 0.01, gradients are not clipped"
    )


def _walk(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that has a rule, dotted, with its value."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in RULES:
            yield key, value
            continue
        if key not in SECTIONS:
            raise ValueError(f"unknown key {key} = {shortened(value)}; {_hint(key)}")
        for part in value if isinstance(value, list) else [value or {}]:
            if not isinstance(part, dict):
                raise ValueError(f"{key} is {shortened(part)}; valid: a mapping")
            yield from _walk(part, f"{key}.")


def _hint(key: str) -> str:
    section, _, name = key.rpartition(".")
    known = {known: known.rpartition(".")[2] for known in (*RULES, *SECTIONS)}
    near = [k for k, leaf in known.items() if difflib.get_close_matches(name, [leaf], 1, 0.75)]
    near.sort(key=lambda k: k.rpartition(".")[0] != section)
    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    beside = [leaf for k, leaf in known.items() if k.rpartition(".")[0] == section]
    return f"valid{f' in {section}' if section else ''}: {', '.join(beside)}"


def _completed(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a run, from those and a recipe's own notions of how long and how many."""
    fields = FIXED | fields
    lengths = [fields.pop(name, 0) for name in ("train_iters", "exit_iteration")]
    if iterations := min(filter(None, lengths), default=0):
        fields["warmup_steps"] = min(2, iterations - 1)
        fields["steps"] = iterations - fields["warmup_steps"]
    if fields["activation_checkpoint_cpu_offload"] and not fields["activation_checkpointing"]:
        raise ValueError(
            "activation_checkpoint_cpu_offload is true and so is "
            "model.disable_activation_checkpoint; valid: one of them"
        )
    if "seq_len" not in fields:
        fields["seq_len"] = _longest(fields["model.name_or_path"])
    launched = launched_world_size()
    return {"world_size": launched or fields["sequence_parallel_size"]} | fields


def _longest(model: str) -> int:
    """Length of a sample, in tokens, that ArcticTraining takes where a recipe has none."""
    length = MAX_POSITION_EMBEDDINGS.get(model)
    if folder := ModelOptions(name_or_path=model).checkpoint:
        length = hf_config.read_object(folder / "config.json").get("max_position_embeddings")
    if not isinstance(length, int):
        raise ValueError("data.max_length is missing; valid: the tokens of a sample")
    return length


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        section, _, leaf = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    return nested
