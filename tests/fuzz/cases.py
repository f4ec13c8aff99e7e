"""Commands that the fuzzer makes, by the kind of file or text in which it changes something."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from bench.__main__ import main
from bench.commands import flags
from tests.fuzz import draws
from tests.support.arctic import RECIPE
from tests.support.hf_configs import CONFIGS
from tests.support.launched import SMALL
from tests.support.paths import RESULTS

DRY = [*SMALL.split(), "--seq_len", "64", "--dry_run", "true"]
LEAST = {
    "run": ["run", *SMALL.split(), "--seq_len", "64"],
    "sweep": ["sweep", *SMALL.split(), "--seq_len", "[64,128]", "--method", "[tp,ulysses]"],
    "compare": ["compare", *SMALL.split(), "--seq_len", "64", "--world_size", "2"],
    "verify": ["verify", *SMALL.split(), "--seq_len", "64"],
    "calibrate": ["calibrate", *SMALL.split()],
    "hardware": ["hardware", "h20"],
    "dry_run": ["dry_run", "--device", "cpu", "this"],  # a module of Python's
    "theory": ["theory", *SMALL.split(), "--seq_len", "64"],
    "plan": ["plan", *SMALL.split(), "--seq_len", "64"],
    "report": ["report", "--rows", "good.csv"],
}
"""A valid command of each verb."""
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCHED += ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_ID")
LAUNCHED += ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID")


@dataclass(frozen=True)
class Case:
    """A command, with the files and environment variables that it finds.

    Attributes:
        may_change: Files that the command may change unless it is refused.
        counts: Whether its dry runs are counted.
    """

    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    may_change: frozenset[str] = frozenset()
    counts: bool = False


@cache
def _flags(verb: str) -> list[str]:
    named = (action.option_strings for action in flags.PARSERS[verb]()._actions)
    found = [names[0] for names in named if names and names[0] not in ("-h", "--config")]
    return [*found, *(f"{flag}.memory" for flag in found if flag == "--hardware")]


@st.composite
def of_flags(draw: st.DrawFn) -> Case:
    verb = draw(st.sampled_from([*LEAST]))
    arguments = list(LEAST[verb])
    for _ in range(draw(st.integers(1, 3))):
        flag, value = draw(st.sampled_from([*_flags(verb), "--config"])), draw(draws.argument())
        arguments += draw(st.sampled_from([[flag, value], [f"{flag}={value}"], [flag], [value]]))
    return Case(arguments)


@st.composite
def of_environment(draw: st.DrawFn) -> Case:
    """The variables by which torchrun and srun tell a process who it is."""
    valid = st.sampled_from(["0", "1", "2", "4", "8(x2)", "127.0.0.1"])
    values = st.one_of(valid, draws.argument().filter(lambda text: "\ud800" not in text))
    given = draw(st.dictionaries(st.sampled_from(LAUNCHED), values, min_size=1))
    return Case(LEAST[draw(st.sampled_from(["run", "sweep", "verify"]))], environment=given)


CONFIG = {
    "method": "ulysses",
    "seq_len": 64,
    "world_size": 2,
    "dtype": "fp32",
    "tiled_loss_compute": "auto",
    "hardware": "",
    "timeout_s": 60,
    "model": {"name_or_path": "tiny", "num_hidden_layers": 1, "rope_theta": 1e4},
    "optimizer": {"learning_rate": 1e-3},
    "data": {"path": "", "repeat": True},
}


def _yaml(document: Any) -> bytes:
    """Return a document as YAML; half-pairs of surrogates, which it cannot hold, become marks."""
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return text.encode(errors="replace")


def _in_yaml(document: Any) -> st.SearchStrategy[bytes]:
    changed = draws.changed(document).map(_yaml)
    return st.one_of(changed, changed, draws.damaged(_yaml(document)))


def _in_json(document: Any) -> st.SearchStrategy[bytes]:
    changed = draws.changed(document).map(lambda of: json.dumps(of).encode())
    return st.one_of(changed, changed, draws.damaged(json.dumps(document).encode()))


@st.composite
def of_configs(draw: st.DrawFn) -> Case:
    verb = draw(st.sampled_from(["run", "sweep", "verify", "plan"]))
    return Case([verb, "--config", "given.yml"], {"given.yml": draw(_in_yaml(CONFIG))})


@st.composite
def of_recipes(draw: st.DrawFn) -> Case:
    content = draw(_in_yaml(yaml.safe_load(RECIPE)))
    return Case(["run", "--config", "given.yml"], {"given.yml": content})


@cache
def _profile() -> Any:
    return yaml.safe_load((RESULTS / "emulated" / "none-1" / "profile.yml").read_text())


@st.composite
def of_profiles(draw: st.DrawFn) -> Case:
    content = {"given.yml": draw(_in_yaml(_profile()))}
    commands = (["run", *DRY], ["plan", *DRY], [*LEAST["calibrate"], "--out", "given.yml"])
    command = draw(st.sampled_from(commands))
    return Case([*command, "--hardware", "given.yml"], content, counts=command[0] == "run")


@cache
def _lines() -> list[list[str]]:
    text = (RESULTS / "limit.csv").read_text().splitlines()
    return [line.split(",") for line in text[:4]]


@st.composite
def of_rows(draw: st.DrawFn) -> Case:
    table = draw(draws.changed(_lines(), most=4))
    lines = (",".join(map(str, line)) if isinstance(line, list) else str(line) for line in table)
    content = "\n".join(lines).encode(errors="replace")
    if draw(st.booleans()):
        content = draw(draws.damaged(content))
    verb = draw(st.sampled_from(["report", "run", "sweep", "compare", "verify", "plan"]))
    arguments = ["--rows", "given.csv"] if verb == "report" else ["--out", "given.csv"]
    command = LEAST[verb][:1] if verb == "report" else LEAST[verb]
    return Case([*command, *arguments], {"given.csv": content}, may_change=frozenset(["given.csv"]))


@cache
def _trace() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        written = ["--trace", str(file), "--out", f"{folder}/rows.csv"]
        assert main(["run", *DRY, "--hardware", "h100-80g", "--dtype", "bf16", *written]) == 0
        trace = json.loads(file.read_text())
    trace["traceEvents"] = trace["traceEvents"][:60]
    return trace


@st.composite
def of_traces(draw: st.DrawFn) -> Case:
    return Case(["report", "--rows", "given.json"], {"given.json": draw(_in_json(_trace()))})


@cache
def _checkpoint(kind: str) -> dict[str, bytes]:
    """Return the files of a small model with a tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_config(CONFIGS[kind])
        model.save_pretrained(folder, max_shard_size="100KB" if kind == "llama" else "5GB")
        words = {"?": 0, "the": 1, "sea": 2}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(f"{folder}/tokenizer.json")
        return {f"model/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}


@st.composite
def of_checkpoints(draw: st.DrawFn) -> Case:
    files = dict(_checkpoint(draw(st.sampled_from(["llama", "qwen3"]))))
    pattern = draw(st.sampled_from(["config.json$", "tokenizer.json$", r"index.json$", "safeten"]))
    name = next((name for name in files if re.search(pattern, name)), "model/config.json")
    if name.endswith(".json"):
        files[name] = draw(_in_json(json.loads(files[name])))
    else:
        files[name] = draw(_with_header(files[name]))
    dry = draw(st.booleans())
    given = ["--seq_len", "64", "--model.name_or_path", "model", "--dry_run", str(dry).lower()]
    return Case(["run", *given, "--data.path", "notes.txt", "--data.repeat", "true"], files)


@st.composite
def _with_header(draw: st.DrawFn, content: bytes) -> bytes:
    """Return a safetensors file with another header, or with damage at its beginning."""
    length = int.from_bytes(content[:8], "little")
    if draw(st.booleans()):
        return draw(draws.damaged(content[: length + 8])) + content[length + 8 :]
    header = draw(_in_json(json.loads(content[8 : length + 8])))
    return len(header).to_bytes(8, "little") + header + content[length + 8 :]


CASES: dict[str, Callable[[], st.SearchStrategy[Case]]] = {
    "flags": of_flags,
    "environment": of_environment,
    "configs": of_configs,
    "recipes": of_recipes,
    "profiles": of_profiles,
    "rows": of_rows,
    "traces": of_traces,
    "checkpoints": of_checkpoints,
}
