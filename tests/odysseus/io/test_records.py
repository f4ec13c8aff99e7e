"""Datasets as text: JSON lines of texts and conversations, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from odysseus.config.run import DataOptions, ModelOptions, RunConfig
from odysseus.io import records
from odysseus.io.text import Samples, check_tokens, load_text
from tests.support.hf_configs import SIZES

WORDS = ("?", "<user>", "<assistant>", "</s>", "what", "is", "it", "a", "cat", "and", "this")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
TALK = [
    {"role": "user", "content": "what is it"},
    {"role": "assistant", "content": "a cat"},
    {"role": "user", "content": "and this"},
    {"role": "assistant", "content": "a cat"},
]

TURN = pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()})
TALKS_OR_TEXTS = pyarrow.schema({"messages": pyarrow.list_(TURN), "text": pyarrow.string()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a tokenizer of eleven words and a chat template."""
    words = WordLevel({word: 300 + i for i, word in enumerate(WORDS)}, unk_token="?")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": "llama"}))
    return tmp_path


def run_of(folder: Path, rows: list[object], name: str = "", pack: bool = True) -> RunConfig:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    data = DataOptions(path=str(file), pack=pack, repeat=True)
    return RunConfig(model=ModelOptions(name_or_path=name or str(folder)), data=data, seq_len=32)


def test_only_what_the_assistant_says_has_labels(folder: Path) -> None:
    run = run_of(folder, [{"messages": TALK}, {"text": "a cat"}])
    check_tokens(run)
    (batch,) = Samples(run, 0, 0, torch.device("cpu")).step(0)
    words = dict(enumerate(WORDS, 300))
    inputs = [words[i] for i in batch.input_ids[0].tolist()]
    said = "<user> what is it </s> <assistant> a cat </s> <user> and this </s> <assistant> a cat"
    assert inputs[:19] == [*said.split(), "</s>", "a", "cat"]
    labels = [words.get(i, "") for i in batch.labels[0].tolist()]
    says = ["a", "cat", "</s>"]
    assert labels[:19] == [*[""] * 5, *says, *[""] * 5, *says, "", "cat", ""]
    assert batch.position_ids[0, :19].tolist() == [*range(17), 0, 1]


def test_rows_are_not_documents_unless_they_are_packed(folder: Path) -> None:
    text = load_text(run_of(folder, [{"text": "a"}, {"text": "cat"}], pack=False))
    assert text.starts.tolist() == [0]
    assert text.tokens.tolist() == [307, 308]


def write_parquet(table: pyarrow.Table, file: Path) -> None:
    parquet.write_table(table, file, row_group_size=1)


def write_stream(table: pyarrow.Table, file: Path) -> None:
    with pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)


def write_file(table: pyarrow.Table, file: Path) -> None:
    with pyarrow.ipc.new_file(file, table.schema) as out:
        out.write_table(table)


TABLES = {"rows.parquet": write_parquet, "stream.arrow": write_stream, "file.arrow": write_file}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_as_lines_are(name: str, folder: Path) -> None:
    rows: list[object] = [{"messages": TALK}, {"text": "a cat"}, {"text": "this"}]
    TABLES[name](pyarrow.Table.from_pylist(rows, TALKS_OR_TEXTS), folder / name)
    expected = records.read(run_of(folder, rows).data.path, folder)
    assert records.read(str(folder / name), folder) == expected
    run = RunConfig(
        model=ModelOptions(name_or_path=str(folder)),
        data=DataOptions(path=str(folder / name), pack=True, repeat=True),
        seq_len=32,
    )
    check_tokens(run)
    assert torch.equal(torch.tensor(load_text(run).starts), torch.tensor([0, 17, 19]))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_damaged(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b'{"text": "a"}' * 9)
    with pytest.raises(ValueError, match=rf"{name}', which is not (parquet|arrow): .*; valid: obj"):
        records.read(str(folder / name), folder)


def test_without_a_tokenizer_texts_are_bytes(folder: Path) -> None:
    text = load_text(run_of(folder, [{"text": "naïve"}, {"text": "b"}], "tiny"))
    assert text.tokens.tobytes() == "naïveb".encode()
    assert text.starts.tolist() == [0, 6]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty; valid: a UTF-8 text file"),
        ([{"prompt": "a"}], "whose row 1 is {'prompt': 'a'}; valid: objects with"),
        ([{"text": "a"}, {"text": 3}], "whose row 2 is {'text': 3}; valid: objects with"),
        ([{"text": "a", "messages": TALK}], "whose row 1 is "),
        ([[1]], "whose row 1 is [1]; valid: objects with"),
        ([{"messages": []}], "whose row 1 is {'messages': []}; valid:"),
        ([{"messages": ["hello"]}], "whose row 1 has the message 'hello'; valid:"),
        ([{"messages": [{"role": "user"}]}], "has the message {'role': 'user'}; valid:"),
    ],
)
def test_what_is_not_understood_is_refused(folder: Path, rows: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_tokens(run_of(folder, rows))


def test_a_line_that_is_no_json(folder: Path) -> None:
    run = run_of(folder, [])
    Path(run.data.path).write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"whose line 2 is not JSON: .*; valid: objects with"):
        check_tokens(run)


def test_messages_without_a_template(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.path has messages, which need a chat templ"):
        check_tokens(run_of(folder, [{"messages": TALK}], "tiny"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    records._tokenizer.cache_clear()
    with pytest.raises(ValueError, match=r"cannot write messages: .*; valid: a chat template"):
        check_tokens(run_of(folder, [{"messages": TALK}]))


def test_a_template_that_rewrites_earlier_turns(folder: Path) -> None:
    rewriting = TEMPLATE.replace("{{ m.content }}", "{{ m.content if loop.last else '?' }}")
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": rewriting}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    records._tokenizer.cache_clear()
    with pytest.raises(ValueError, match="row 1 is a conversation whose earlier turns the chat te"):
        check_tokens(run_of(folder, [{"messages": TALK}]))


@pytest.mark.parametrize("suffix", [".json", ".csv", ".gz"])
def test_other_formats_are_refused(folder: Path, suffix: str) -> None:
    file = folder / f"rows{suffix}"
    file.write_text('{"text": "a"}')
    run = RunConfig(data=DataOptions(path=str(file), repeat=True))
    with pytest.raises(ValueError, match=rf"whose format \{suffix} is not known; valid: a text fi"):
        check_tokens(run)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_a_tokenizer_in_another_form_is_refused(folder: Path, name: str) -> None:
    run = run_of(folder, [{"text": "a"}])
    (folder / "tokenizer.json").rename(folder / name)
    with pytest.raises(ValueError, match=f"has {name}, which is not read, and no tokenizer.json"):
        check_tokens(run)
