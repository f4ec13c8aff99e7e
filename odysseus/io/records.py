"""Documents of a dataset: JSON lines, Parquet or Arrow, each row a text or a conversation.

A conversation becomes text by the chat template beside the model's weights. Its labels are what the
assistant says, with the end of its turn, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

_LINES, _TABLES = (".jsonl", ".ndjson"), {".parquet": "parquet", ".arrow": "arrow"}
_OTHERS = (".json", ".csv", ".tsv", ".gz", ".zst", ".zip", ".bin", ".npy", ".pt")
_VALID = (
    'objects with "text", or with "messages" of a "role" and a "content" each, both of them texts'
)

Template = Callable[[list[dict[str, str]], bool], str]
"""template(messages, prompts) -> text; with prompts, it ends where the assistant begins."""


@dataclass(frozen=True)
class Record:
    """One document.

    Attributes:
        text: Its text.
        labelled: Begin and end of the characters that are learnt; None for all.
    """

    text: str
    labelled: tuple[tuple[int, int], ...] | None = None


def has_records(path: str) -> bool:
    """Whether a file is a dataset, by its name; any other is a text.

    Raises:
        ValueError: it is named like another format, which is neither.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _OTHERS:
        raise ValueError(
            f"data.path is {path!r}, whose format {suffix} is not known; valid: a text file, "
            f"{', '.join((*_LINES, *_TABLES))}"
        )
    return suffix in (*_LINES, *_TABLES)


def is_table(path: str) -> bool:
    """Whether a dataset is Parquet or Arrow, which are not text."""
    return Path(path).suffix.lower() in _TABLES


def read(path: str, folder: Path | None) -> list[Record]:
    """Read the documents of a dataset.

    Args:
        folder: The model's, with its tokenizer and chat template; None if it has none.

    Raises:
        ValueError: a row is neither a text nor a conversation, or there is no chat template.
    """
    template = partial(_rendered, folder)
    records = [
        _record(row, f"data.path is {path!r}, whose row {number}", template)
        for number, row in enumerate(_rows(path), 1)
    ]
    if not records:
        raise ValueError(f"data.path is {path!r}, which has no rows; valid: {_VALID}")
    return records


def _rows(path: str) -> Iterator[Any]:
    suffix = Path(path).suffix.lower()
    if suffix in _TABLES:
        yield from _table(path, _TABLES[suffix])
        return
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(
                        f"data.path is {path!r}, whose line {number} is not JSON: "
                        f"{str(error)[:80]}; valid: {_VALID}"
                    ) from None


def _table(path: str, kind: str) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            f"data.path is {path!r}, which needs the package pyarrow; valid: pip install pyarrow, "
            f"or {_LINES[0]}"
        ) from None
    try:
        table = parquet.read_table(path) if kind == "parquet" else _arrow(path)
    except (pyarrow.ArrowException, OSError) as error:
        why = " ".join(str(error).split())[:80]
        raise ValueError(
            f"data.path is {path!r}, which is not {kind}: {why}; valid: {_VALID}"
        ) from None
    known = [column for column in ("text", "messages") if column in table.column_names]
    if not known:
        raise ValueError(
            f"data.path is {path!r}, whose columns are {shortened(table.column_names)}; "
            f"valid: {_VALID}"
        )
    for batch in table.select(known).to_batches():
        yield from batch.to_pylist()


def _arrow(path: str) -> Any:
    """Read Arrow's stream format, which the package datasets writes, or its file format."""
    import pyarrow

    with pyarrow.memory_map(path) as source:
        try:
            return pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            return pyarrow.ipc.open_file(source).read_all()


def _record(row: Any, where: str, template: Template) -> Record:
    """Return one row's document; `where` begins the messages of errors."""
    columns = row if isinstance(row, dict) else {}
    given = {key: columns[key] for key in ("text", "messages") if columns.get(key) is not None}
    if len(given) == 1 and isinstance(given.get("text"), str) and given["text"]:
        return Record(given["text"])
    messages = given.get("messages")
    if len(given) != 1 or not isinstance(messages, list) or not messages:
        raise ValueError(f"{where} is {shortened(row)}; valid: {_VALID}")
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(f"{where} has the message {shortened(message)}; valid: {_VALID}")
    return _conversation(messages, where, template)


def _conversation(messages: list[dict[str, str]], where: str, template: Template) -> Record:
    """Render a conversation, and find where in its text the assistant speaks.

    What it says in turn i is what turn i adds to the text of the turns before it, after the words
    that ask the assistant to speak.
    """
    text = template(messages, False)
    labelled = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            before = template(messages[:turn], True)
            until = template(messages[: turn + 1], False)
            if not (until.startswith(before) and text.startswith(until)):
                raise ValueError(
                    f"{where} is a conversation whose earlier turns the chat template writes "
                    "otherwise once there are later ones; valid: a template that only appends"
                )
            labelled.append((len(before), len(until)))
    return Record(text, tuple(labelled))


def _rendered(folder: Path | None, messages: list[dict[str, str]], prompts: bool) -> str:
    """Apply the chat template of a model's folder."""
    if folder is None:
        raise ValueError(
            "data.path has messages, which need a chat template; valid: model.name_or_path = a "
            'folder with a tokenizer and its chat template, or rows with "text"'
        )
    try:
        return _tokenizer(folder).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompts
        )
    except Exception as error:
        why = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{folder} cannot write messages: {why}; valid: a chat template for these roles"
        ) from None


@lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer  # takes seconds

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
