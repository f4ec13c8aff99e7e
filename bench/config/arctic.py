"""Convert ArcticTraining's YAML recipes to options of a run; docs/recipes.md has the table.

- A key with an equivalent option is converted.
- A key that affects neither the cost nor the mathematics of a step is ignored.
- A key is refused if the run would train something else, or cost something else, without it.
- A missing key with an equivalent option takes ArcticTraining's default.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from bench import safe_yaml
from bench.config.arctic_keys import (
    DEFAULTS,
    FIXED,
    IGNORED_SECTIONS,
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
    """Return the arguments with each recipe's file replaced by its options, and a note per recipe.

    A model that a flag names takes the recipe's place before that is read, because it decides what
    the recipe leaves out.

    Raises:
        ValueError: a recipe's key or value cannot be run; the message says what is valid.
    """
    translated, notes = [], []
    is_file = False
    for argument in arguments:
        flag = "--config=" if argument.startswith("--config=") else ""
        file = argument.removeprefix(flag)
        recipe = _read(file) if is_file or flag else None
        if recipe is not None:
            named, of_recipe = _flag(arguments, "--model.name_or_path"), recipe.get("model") or {}
            if named and isinstance(of_recipe, dict):
                recipe["model"] = of_recipe | {"name_or_path": named}
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
    """Return a recipe as nested options of a run, and the keys or sections that were ignored.

    Raises:
        ValueError: a key or a value cannot be run.
    """
    given = dict(_walk(recipe))
    for key, valid in REQUIRED.items():
        if key not in given:
            raise ValueError(f"{key} is missing; valid: {valid}")
    fields: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    for key, value in (DEFAULTS | given).items():
        for name, option in (RULES.get(key) or ignore)(key, value).items():
            if fields.setdefault(name, option) != option:
                other = set_by[name]
                raise ValueError(f"{key} is {value!r}; valid: what {other} says, {fields[name]!r}")
            set_by[name] = key
    ignored = [key for key in given if RULES[key] is None]
    shown = (
        section if (section := key.partition(".")[0]) in IGNORED_SECTIONS else key
        for key in ignored
    )
    return _nested(_completed(fields)), list(dict.fromkeys(shown))


def _read(file: str) -> dict[str, Any] | None:
    """Read the recipe in a file; None if it has none or is damaged, which the parser reports."""
    try:
        content = safe_yaml.read(Path(file))
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    data = content.get("data")
    own_keys = content.keys() & {"type", "deepspeed", "scheduler", *IGNORED_SECTIONS}
    return content if own_keys or (isinstance(data, dict) and "sources" in data) else None


def _flag(arguments: Sequence[str], flag: str) -> str:
    """Return the last value of a flag, or nothing."""
    value = ""
    for before, argument in itertools.pairwise(["", *arguments]):
        if before == flag:
            value = argument
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value


def _note(file: str, ignored: list[str]) -> str:
    return (
        f"{file} is an ArcticTraining recipe; ignored: {', '.join(ignored) or 'nothing'}; in place "
        "of its data data.path or the built-in text, repeated; the learning rate is constant, "
        "weight decay 0.01, gradients are not clipped"
    )


def _walk(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key that has a rule, with its value."""
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
    """Return the options of a run with steps, sample length and world size filled in."""
    fields = {**FIXED, **fields}
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
        fields["seq_len"] = _default_seq_len(fields["model.name_or_path"])
    launched = launched_world_size()
    return {"world_size": launched or fields["sequence_parallel_size"]} | fields


def _default_seq_len(model: str) -> int:
    """Return the tokens per sample that ArcticTraining takes if a recipe does not say."""
    length = MAX_POSITION_EMBEDDINGS.get(model)
    if folder := ModelOptions(name_or_path=model).checkpoint:
        length = hf_config.read_object(folder / "config.json").get("max_position_embeddings")
    if not isinstance(length, int):
        raise ValueError("data.max_length is missing; valid: the number of tokens per sample")
    return length


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        section, _, leaf = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    return nested
