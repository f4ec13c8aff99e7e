"""TRL's trainers on a prepared model over ranks log and save what they do in one process, in
fp64."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.hf_models import ALL, OF_EXPERTS
from tests.support.hf_trainers import Training, assert_same
from tests.support.hf_trl import dpo, refusals, sft
from tests.support.marks import slow
from tests.support.ranks import run_ranks

LOOPS = {
    "sft": partial(sft, packed=False),
    "sft packed": partial(sft, packed=True),
    "sft experts": partial(sft, packed=False, name="mixtral"),
    "dpo": partial(dpo, adapters=False),
    "dpo adapters": partial(dpo, adapters=True),
}
QUICK = [("sft", 2, 2, ALL)]
# Ranks, those that share a sample, and whether all tricks are on.
LAYOUTS = [(1, 1, True), (2, 2, False), (2, 1, False), (4, 4, True), (4, 2, True)]
EVERY = [
    (loop, ranks, shards, (OF_EXPERTS if loop == "sft experts" else ALL) if tricks else {})
    for loop in LOOPS
    for ranks, shards, tricks in LAYOUTS
]


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """The folder and the log of TRL's own trainings, as far as asked for."""
    return {"folder": (tmp_path_factory.mktemp("plain"), None)}


@pytest.mark.parametrize(
    ("loop", "world_size", "shards", "toggles"),
    [*QUICK, *(slow(*case) for case in EVERY if case not in QUICK)],
)
def test_as_in_one_process(
    loop: str,
    world_size: int,
    shards: int,
    toggles: dict[str, Any],
    tmp_path: Path,
    in_one_process: dict[str, tuple[Path, Any]],
) -> None:
    """Accumulation, padding, clipping, evaluation, saving; with a reference for preferences."""
    if loop not in in_one_process:
        folder = in_one_process["folder"][0] / loop
        (log,) = run_ranks(LOOPS[loop], 1, Training(folder, 0), fresh=True)
        in_one_process[loop] = folder, log
    training = Training(tmp_path, shards, toggles)
    logs = run_ranks(LOOPS[loop], world_size, training, fresh=True)
    assert_same(tmp_path, logs, in_one_process[loop])


@pytest.mark.slow
def test_what_is_refused(tmp_path: Path) -> None:
    """TRL's defaults that the prepared model decides, and losses that are not computed here."""
    expected = {
        "reference": "ref_model is not prepared; valid: odysseus.hf.prepare first.",
        "loss": "DPOConfig.loss_type is ['ipo']; valid on a split sequence: ['sigmoid']",
        "reference of TRL": "DPOConfig.precompute_ref_log_probs is True; valid on a split",
        "precision": "SFTConfig.bf16 is True; valid: none, RunConfig decides precision",
        "checkpointing": "SFTConfig.activation_checkpointing is True; valid: False, as the",
        "noise": "SFTConfig.neftune_noise_alpha is 5.0; valid on a split sequence: None",
        "another loss": "SFTConfig.loss_type is 'dft'; valid on a split sequence: 'nll'",
        "a loss of one's own": "compute_loss_func is given; valid: None, the loss of split samples",
        "documents": "the batch has cu_seq_lens_k and no position_ids, which say where documents",
    }
    (found,) = run_ranks(refusals, 1, tmp_path, fresh=True)
    assert found.keys() == expected.keys()
    assert {k: v for k, v in found.items() if not v.startswith(expected[k])} == {}
