"""The order of samples, the part of them that each rank reads, and errors of bad texts.

Sample k is tokens [k·L, (k+1)·L] of the text, wrapping at its end: L inputs and, one later, L
labels. Step t, micro step g, replica p, element b reads sample ((t·GAS + g)·DP + p)·MBS + b.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import pytest
import torch

from odysseus.config.run import DataOptions, RunConfig
from odysseus.io import text as text_module
from odysseus.io.text import Batch, Samples, check_tokens, open_tokens

TEXT = bytes(Random(0).choices(range(97, 123), k=211))  # 211 is prime: samples wrap everywhere.
GOOD = "naïve — 語".encode() * 3  # Characters of 1, 2 and 3 bytes.
L = 8
CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT)
    return RunConfig(data=DataOptions(path=str(file)), seq_len=L)


def sample(k: int) -> list[int]:
    """Tokens [k·L, (k+1)·L] of the text repeated without end."""
    return [TEXT[i % len(TEXT)] for i in range(k * L, (k + 1) * L + 1)]


def check_sample(batch: Batch, element: int, k: int) -> None:
    assert batch.input_ids[element].tolist() == sample(k)[:-1]
    assert batch.labels[element].tolist() == sample(k)[1:]


@pytest.mark.parametrize("gas", [1, 3])
@pytest.mark.parametrize("dp", [1, 4])
@pytest.mark.parametrize("mbs", [1, 2])
def test_sample_order(run: RunConfig, gas: int, dp: int, mbs: int) -> None:
    run = replace(
        run,
        world_size=dp,
        sequence_parallel_size=1,
        gradient_accumulation_steps=gas,
        micro_batch_size=mbs,
    )
    for replica, t in product(range(dp), (0, 1, 5, 1000)):
        batches = Samples(run, replica, 0, CPU).step(t)
        assert len(batches) == gas
        for g, b in product(range(gas), range(mbs)):
            check_sample(batches[g], b, ((t * gas + g) * dp + replica) * mbs + b)


def test_samples_wrap_at_the_end_of_the_text(run: RunConfig) -> None:
    """Sample 26 is tokens 208, 209, 210 and, from the start again, 0 to 5."""
    (batch,) = Samples(run, 0, 0, CPU).step(26)
    assert bytes(batch.input_ids[0].tolist()) == TEXT[208:] + TEXT[:5]
    assert bytes(batch.labels[0].tolist()) == TEXT[209:] + TEXT[:6]


def test_replicas_and_micro_steps_read_the_same_step(run: RunConfig) -> None:
    wide = replace(run, world_size=8, sequence_parallel_size=1)
    deep = replace(run, gradient_accumulation_steps=8)
    for t in (0, 1, 7):
        replicas = [Samples(wide, replica, 0, CPU).step(t) for replica in range(8)]
        micro_steps = Samples(deep, 0, 0, CPU).step(t)
        assert [len(batches) for batches in replicas] == [1] * 8
        for (a,), b in zip(replicas, micro_steps, strict=True):
            assert torch.equal(a.input_ids, b.input_ids)
            assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("size", [2, 4])
def test_shards_in_rank_order_are_the_whole_sample(run: RunConfig, size: int) -> None:
    run = replace(run, micro_batch_size=3)
    (whole,) = Samples(run, 0, 0, CPU).step(9)
    split = replace(run, world_size=2 * size, sequence_parallel_size=size, micro_batch_size=3)
    # Two replicas: the second one's step 4 starts at sample (4·2 + 1)·3 = 27, step 9 of one.
    shards = [Samples(split, 1, rank, CPU).step(4)[0] for rank in range(size)]
    for field in ("input_ids", "labels", "position_ids"):
        parts = [getattr(shard, field) for shard in shards]
        assert {part.shape[1] for part in parts} == {L // size}
        assert torch.equal(torch.cat(parts, 1), getattr(whole, field))
    assert whole.position_ids.tolist() == [list(range(L))]
    assert {x.dtype for x in (whole.input_ids, whole.labels, whole.position_ids)} == {torch.int64}


def test_without_a_path_the_text_is_english_and_long() -> None:
    check_tokens(RunConfig(seq_len=100_000))
    assert open_tokens("").tobytes().decode().count(" the ") > 1000


def test_tokens_are_bytes(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(GOOD)
    assert open_tokens(str(file)).tolist() == list(GOOD)


def test_missing_file() -> None:
    with pytest.raises(ValueError, match=r"data\.path is '/no/such/file', .*valid: a UTF-8"):
        open_tokens("/no/such/file")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.path is .*not a readable file; valid: a UTF-8"):
        open_tokens(str(tmp_path))


def test_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "empty.txt"
    file.touch()
    with pytest.raises(ValueError, match=r"data\.path is .*empty\.txt', which is empty; valid:"):
        open_tokens(str(file))


def test_text_shorter_than_a_sample(run: RunConfig) -> None:
    """211 tokens hold 210 inputs and their labels."""
    check_tokens(replace(run, seq_len=210))
    with pytest.raises(ValueError, match=r"seq_len = 211 needs 212 tokens, .* has 211; .* 210"):
        check_tokens(replace(run, seq_len=211))


def test_a_repeated_text_serves_a_longer_sample(run: RunConfig) -> None:
    """Without data.repeat the same is refused, and the message names it."""
    long = replace(run, seq_len=500)
    with pytest.raises(ValueError, match=r"valid: seq_len up to 210, .* or data\.repeat = true"):
        check_tokens(long)
    repeated = replace(long, data=replace(run.data, repeat=True))
    check_tokens(repeated)
    for k in (0, 3):
        (batch,) = Samples(repeated, 0, 0, CPU).step(k)
        expected = [TEXT[i % len(TEXT)] for i in range(k * 500, (k + 1) * 500 + 1)]
        assert batch.input_ids[0].tolist() == expected[:-1]
        assert batch.labels[0].tolist() == expected[1:]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 4, 5, 7, 16, 1 << 20])
@pytest.mark.parametrize(
    ("text", "bad_byte"),
    [
        (b"\xff" + GOOD, 0),
        (GOOD + b"\xff" + GOOD, len(GOOD)),
        (GOOD + "語".encode()[:2] + GOOD, len(GOOD)),
        (GOOD + b"\xa9" + GOOD, len(GOOD)),
        (GOOD + "語".encode()[:1], len(GOOD)),
        (GOOD + "語".encode()[:2], len(GOOD)),
        (GOOD + b"\xed\xa0\x80" + GOOD, len(GOOD)),  # A surrogate.
    ],
    ids=["first", "never valid", "cut off", "no start", "end 1", "end 2", "surrogate"],
)
def test_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, bad_byte: int, chunk_bytes: int
) -> None:
    """The offset is that of the first byte that belongs to no character, as bytes.decode says."""
    with pytest.raises(UnicodeDecodeError) as error:
        text.decode()
    assert error.value.start == bad_byte
    monkeypatch.setattr(text_module, "_CHUNK_BYTES", chunk_bytes)
    file = tmp_path / "bad.txt"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=rf"data\.path is .*not UTF-8 at byte {bad_byte}; valid:"):
        check_tokens(RunConfig(data=DataOptions(path=str(file)), seq_len=8))


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 4, 5, 7, 16, len(GOOD), 1 << 20])
def test_characters_across_chunks_are_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(text_module, "_CHUNK_BYTES", chunk_bytes)
    file = tmp_path / "good.txt"
    file.write_bytes(GOOD)
    check_tokens(RunConfig(data=DataOptions(path=str(file)), seq_len=8))
