"""Unmodified Transformers models on a split sequence equal the same model in one process.

The loss and every gradient are compared with Transformers' own attention and mask, in fp64 at
1e-10.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from bench import rows
from bench.__main__ import main
from odysseus.hf.attention import NAMES
from odysseus.hf.families import EXPERTS, TRICKS
from tests.support.hf_families import CONFIGS
from tests.support.hf_mistakes import refusals
from tests.support.hf_models import (
    ALL,
    OF_EXPERTS,
    Case,
    errors,
    in_other_orders,
    padded,
    registered,
    undone,
)
from tests.support.marks import slow
from tests.support.ranks import run_ranks
from tests.support.toggles import ALL_ON
from tests.support.toggles import TOGGLES as OWN_TOGGLES

OF_METHODS = ("kept_gathers",)
OF_OPTIMIZERS = ("optimizer_offload", "optimizer_masters")
TOGGLES = [toggle for name, toggle in OWN_TOGGLES.items() if name not in OF_METHODS + OF_OPTIMIZERS]
TOGGLES += [{"zero_prefetch": False}, {"zero_engine": "overlap"}]
TOGGLES += [{"reshard_after_forward": False}]


def cases(name: str, world_size: int) -> list[Case]:
    """Ulysses over all ranks, a ring, or both, packed and not, with no toggle and with all; at 4
    ranks, for three families, also each toggle on the hybrid."""
    family = CONFIGS[name].model_type
    tricks = ALL_ON if family in TRICKS else {"activation_checkpoint_cpu_offload": True}
    if family in EXPERTS:
        tricks = OF_EXPERTS
    places = {1: [("ulysses", 1)], 2: [("ulysses", 1), ("ring", 2)]}
    hybrid = ("ulysses_ring", 2)
    found = [
        Case(name, attention, ring, packed, toggles)
        for attention, ring in places.get(world_size, [("ulysses", 1), hybrid])
        for packed in (False, True)
        for toggles in ({}, tricks)
    ]
    if world_size == 4 and family in EXPERTS:  # two replicas that read the same samples
        found.append(Case(name, packed=True, toggles={"sequence_parallel_size": 2}))
    if world_size == 4 and name in ("llama", "qwen3", "gemma"):
        found += [Case(name, *hybrid, packed=True, toggles=toggles) for toggles in TOGGLES]
    return found


# Over 2 ranks, by heads and by a ring: every family, and what differs most inside one.
LATER = ("biased", "some_windows", "linear", "yarn", "longrope", "qwen3_moe")
LATER += ("mistral", "granite", "starcoder2")
QUICK = [(name, 2) for name in CONFIGS if name not in LATER]
OTHERS = [case for case in product(CONFIGS, (1, 2, 4)) if case not in QUICK]


@pytest.mark.parametrize(("name", "world_size"), [*QUICK, *(slow(*case) for case in OTHERS)])
def test_equals_transformers(name: str, world_size: int) -> None:
    chosen = cases(name, world_size)
    for of_rank in run_ranks(errors, world_size, chosen):
        for case, found in zip(chosen, of_rank, strict=True):
            assert {n: error for n, error in found.items() if not error < 1e-10} == {}, case


@pytest.mark.parametrize(
    ("name", "toggles"),
    [("llama", ALL), ("qwen3", ALL), ("dynamic", ALL), ("mixtral", OF_EXPERTS)],
)
def test_prepare_undoes_itself(name: str, toggles: dict[str, bool]) -> None:
    """Twice; the model is then one that Transformers computes with as before, on every rank."""
    for of_rank in run_ranks(undone, 2, name, toggles):
        assert of_rank == dict.fromkeys(of_rank, True)


def test_what_is_refused() -> None:
    """Mistakes and the messages that refuse them; each says what is valid."""
    expected = {
        "ring mesh": "attn_implementation = ulysses, but the mesh's ring axis has 2 ranks; valid: "
        "ulysses_ring",
        "sliding window": "LlamaAttention wants attention with sliding_window = 0, which is not",
        "softcap": "LlamaAttention wants attention with softcap = 50.0",
        "sinks": "LlamaAttention has sinks of shape [3]; valid: [4], one per head",
        "router": "MixtralForCausalLM has router_jitter_noise = 0.1, which draws for the tokens of",
        "router logits": "the output has router logits of this rank's tokens alone; valid: a mod",
        "tiles of experts": "tiled_mlp_compute = true is not known to be right for MixtralForCaus",
        "family": "Gemma2Attention is of model_type gemma2, not known to be right on a split seq",
        "longest position": "LlamaAttention has rope_type dynamic, whose frequencies depend on th",
        "plain attention": "LlamaForCausalLM was made with attn_implementation = sdpa, which doe",
        "dropout again": "PhiForCausalLM has dropout of 0.5 in blocks that are computed again in",
        "eval": "LlamaForCausalLM is in eval mode, in which Transformers does not recompute; va",
        "twice": "FSDPLlamaForCausalLM is sharded already; valid: undo() first",
        "no head": "LlamaModel has no blocks or no head; valid: a causal language model",
        "two dtypes": "LlamaForCausalLM trains parameters of torch.bfloat16 and torch.float64, who",
        "checkpointing by the caller": "gradient_checkpointing_enable() or _disable() was called a",
        "value": "dtype is 'bfloat16'; valid: fp32, bf16, fp64",
        "optimizer": "optimizer.offload = cpu is the optimizer's to do; valid: none",
        "other mesh": "LlamaAttention has a batch of another mesh than the one registered last",
        "no labels at all": "all labels of a step are -100; its loss is undefined",
        "nothing": "the batch's input_ids are missing; valid: [samples, tokens]",
        "shapes": "labels is [2, 47]; valid: [2, 48], as input_ids",
        "dropout": "LlamaAttention wants attention with dropout = 0.1",
        "plain batch": "LlamaAttention was given no documents; valid: batches of "
        "odysseus.hf.shard_batch",
        "heads": "LlamaAttention has 1 query heads, which 2 ranks of the sequence axis cannot sha",
        "padding": "attention_mask has zeros before ones; valid: padding at the end",
        "padding with labels": "padding has labels; valid: -100 where attention_mask is 0",
        "documents in a mask": "attention_mask has 2; valid: 0 and 1, and position_ids that begin",
        "documents in a mask, backwards": "attention_mask has 2; valid: 0 and 1, and position_ids",
        "positions that jump": "position_ids of sample 0 have 40 after 29; valid: increasing by 1",
        "words": "the batch's input_ids are a list; valid: a tensor or equally long lists of who",
        "one word": "the batch has 'text'; valid: input_ids, labels, position_ids, attention_mas",
        "lists of any length": "the batch's input_ids are a list; valid: a tensor or equally long",
        "half numbers": "the batch's input_ids are torch.bfloat16; valid: whole numbers, torch.i",
        "a number": "labels is []; valid: [2, 48], as input_ids",
        "fewer batches": "some ranks have read all their batches and others have more; valid: as",
        "hooks": "the head of LlamaForCausalLM has hooks, which expect logits, and a loss in til",
        "length": "seq_len = 47 does not divide by",
        "other keys": "the batch has 'pixel_values'; valid: input_ids, labels, position_ids, ",
        "tiles of Phi": "tiled_mlp_compute = true is not known to be right for PhiForCausalLM",
        "loss of Phi": "tiled_loss_compute = true is not known to be right for PhiForCausalLM",
        "method": "method = tp is not for models of Transformers; valid: ulysses",
        "liger": "model.type = liger is not for models of Transformers; valid: torch",
        "no labels": "the loss is computed in tiles, and the model was not given shift_labels",
        "different batches": "ranks of one replica have read different batches; valid: a Distr",
        "backend": "ring_backend is 'yunchang'; valid: native, allgather",
    }
    (found, _) = run_ranks(refusals, 2)
    assert found.keys() == expected.keys()
    assert {k: v for k, v in found.items() if not v.startswith(expected[k])} == {}


@pytest.mark.parametrize("name", ["llama", "dynamic", "mixtral"])
def test_padding_at_the_end_is_nobodys(name: str) -> None:
    """Padding with labels of -100 leaves the loss of the short samples unchanged; also where that
    depends on the longest position, or on the tokens of each expert."""
    for of_rank in run_ranks(padded, 2, name):
        assert of_rank < 1e-12


def test_registering_leaves_other_names_alone() -> None:
    before, after = run_ranks(registered, 1, fresh=True)[0]
    assert after == before + sorted(NAMES)


def test_an_evaluation_leaves_shards() -> None:
    """Also of the head, whose weights otherwise stay gathered for its backward."""
    for sharded, same_after_two_forwards in run_ranks(in_other_orders, 2):
        assert sharded
        assert same_after_two_forwards < 1e-12


def test_the_harness_measures_it(tmp_path: Path) -> None:
    """The same numbers as this project's own model, but for memory; the same bytes, theory's."""
    file = tmp_path / "rows.csv"
    given = ["sweep", "--method", "ulysses", "--world_size", "2", "--seq_len", "512"]
    given += ["--steps", "2", "--activation_checkpoint_cpu_offload", "true", "--out", str(file)]
    text = tmp_path / "text.txt"
    text.write_text("To be packed.\n\n" * 50)
    given += ["--data.path", str(text), "--data.pack", "true"]
    assert main([*given, "--model.implementation", "[native,transformers]"]) == 0
    native, theirs = rows.read(file).to_dict("records")
    assert theirs["model_implementation"] == "transformers"
    for column in ("loss_first", "loss_last", "grad_norm_first", "grad_norm_last"):
        assert float(native[column]) == pytest.approx(float(theirs[column]), rel=1e-4), column
    for column in ("comm_bytes_activation", "comm_bytes_parameter", "comm_bytes_gradient"):
        assert native[column] == theirs[column], column
    assert theirs["comm_bytes_total"] == theirs["theory_comm_bytes_total"]
    assert native["attention_flops_max"] == theirs["attention_flops_max"]
    assert native["peak_host_bytes"] == theirs["peak_host_bytes"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method tp", "method = tp is not for models of Transformers; valid: ulysses, with"),
        ("--method ulysses --compile true", "compile = true is not for models of Transformers"),
        (
            "--method ulysses --ulysses_head_chunks 2 --world_size 2",
            "ulysses_head_chunks = 2 is not",
        ),
    ],
)
def test_what_the_harness_refuses(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--model.implementation", "transformers", *flags.split()]) == 2
    assert message in capsys.readouterr().err
