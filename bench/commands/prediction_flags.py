"""Flags of the verbs for predictions, formulas and hardware profiles.

This module imports no torch, like :mod:`bench.commands.flags`.
"""

from __future__ import annotations

from argparse import REMAINDER
from typing import Literal

from jsonargparse import ArgumentParser

from bench.config import options

ALL_METHODS = "all"
"""Value of ``plan --method`` that stands for this project's four methods."""
ALL_PAIRS = "pairs"
"""Value of ``plan --method`` that stands for every pair of an attention and an MLP."""


def hardware() -> ArgumentParser:
    """Return the parser of ``hardware``."""
    parser = options.parser(
        "hardware",
        "List the built-in hardware profiles; with a name or a file, print that profile as YAML, "
        "with the meaning, unit and source of every field.",
    )
    parser.add_argument(
        "name",
        type=str,
        nargs="?",
        default="",
        help="Profile to print: a built-in one, or a YAML file. In brackets, fields may differ: "
        "'h100-80g(network_bytes_per_s=12.5e9)'.",
    )
    parser.add_argument(
        "--out", type=str, default="", help="YAML file to write the profile to, for --hardware."
    )
    return parser


def dry_run() -> ArgumentParser:
    """Return the parser of ``dry_run``."""
    parser = options.parser(
        "dry_run",
        "Run a training script as it is, on one rank of a world of any size that has no peers, no "
        "values and no GPU, until an optimizer step has ended; print what that step sends, "
        "holds and computes. Flags come before SCRIPT, the script's own arguments after it.",
    )
    parser.usage = f"{parser.usage} SCRIPT ..."
    parser.add_argument(
        "--world_size", type=int, default=8, help="Number of ranks in the script's world."
    )
    parser.add_argument("--rank", type=int, default=0, help="Rank that the script is.")
    parser.add_argument(
        "--ranks_per_node", type=int, default=8, help="Ranks, and GPUs, of a node; at most 16."
    )
    parser.add_argument(
        "--step",
        type=int,
        default=2,
        help="Optimizer step to count, from 1. The first also makes the optimizer's states; "
        "DeepSpeed's ZeRO-3 sends from its third on what it sends in every later one.",
    )
    parser.add_argument(
        "--device",
        type=Literal["cuda", "cpu"],
        default="cuda",
        help="cuda: the script finds a GPU, which computes nothing; a compiler (g++) builds it "
        "once, in seconds. cpu: it finds none.",
    )
    parser.add_argument(
        "--hardware",
        type=str,
        default="",
        help="Hardware profile to predict the step's time on; see the verb hardware.",
    )
    parser.add_argument(
        "--out", type=str, default="", help="JSON file to write the printed numbers to."
    )
    parser.add_argument(
        "--explain_peak",
        type=bool,
        default=False,
        help="Also print where the memory peak is, and the ten largest tensors alive then.",
    )
    parser.add_argument(
        "script",
        type=list[str],
        nargs=REMAINDER,
        metavar="SCRIPT ...",
        help="The script, SCRIPT.py or the name of a module, and its arguments.",
    )
    return parser


def theory() -> ArgumentParser:
    """Return the parser of ``theory``."""
    parser = options.parser(
        "theory",
        "Communication of one optimizer step, byte by byte, by closed forms: of any model on any "
        "number of ranks, at once. Beside it, the peak of activations where it has a closed form. "
        "All four methods are shown, whatever --method says. If the "
        "sequence axis is not set and cannot take all ranks, it takes the most that it can. For "
        "example: theory --world_size 1024 --model.name_or_path llama3-70b",
    )
    options.add_run_options(parser)
    parser.add_argument(
        "--measure",
        type=bool,
        default=False,
        help="Also run a step of each method on --world_size processes and count its bytes.",
    )
    parser.set_defaults(world_size=4, steps=1, warmup_steps=1)
    return parser


def plan() -> ArgumentParser:
    """Return the parser of ``plan``."""
    parser = options.parser(
        "plan",
        "Which methods fit at --seq_len and the longest sequence of each, or which is fastest. If "
        "nothing fits, which memory savings to add. --method restricts it to one method or to "
        f"several, separated by commas; the default, {ALL_METHODS}, is this project's four, and "
        f"{ALL_PAIRS} is every attention with every MLP (local aside). For "
        "example: plan --model.name_or_path llama3-8b --seq_len 131072 --method tp_sp,ulysses "
        "--ladder true",
    )
    options.add_run_options(parser)
    parser.add_argument(
        "--out",
        type=str,
        default="",
        help="CSV file to append the rows to: at --seq_len and at the longest sequence; of a "
        "ladder its rungs, whose figure is saved beside the file, as PNG and SVG.",
    )
    parser.add_argument(
        "--ladder",
        type=bool,
        default=False,
        help="Print instead the longest sequence of each method as given, then with the memory "
        "saving that makes it longest, and so on until none makes it longer. --seq_len does not "
        "matter.",
    )
    parser.add_argument(
        "--objective",
        type=Literal["longest", "throughput"],
        default="longest",
        help="longest: each method's memory at --seq_len and the longest sequence that fits. "
        "throughput: all combinations of method, axis sizes and memory savings that fit at "
        "--seq_len, fastest first; sizes and savings that are given stay as they are.",
    )
    parser.add_argument(
        "--map",
        type=str,
        default="",
        help="Draw instead which method is fastest at every length and number of GPUs. This is the "
        "name, without ending, of a .png, .svg and .csv file; cells in the .csv are not computed "
        "again. Not with --out.",
    )
    parser.add_argument(
        "--map_seq_lens",
        type=list[int],
        default=[2**k for k in range(13, 22)],
        help="Sequence lengths of the map, in tokens.",
    )
    parser.add_argument(
        "--map_world_sizes",
        type=list[int],
        default=[8, 16, 32, 64, 128, 256],
        help="Numbers of GPUs of the map.",
    )
    parser.add_argument(
        "--map_tensor_parallel_sizes",
        type=list[int],
        default=[1],
        help="Sizes of the tensor axis that the map tries, within the ranks of the sequence axis: "
        "1, which is none, and larger ones for method ulysses.",
    )
    parser.set_defaults(dry_run=True, hardware="h100-80g", dtype="bf16", world_size=8)
    parser.set_defaults(method=ALL_METHODS)
    return parser


def validate() -> ArgumentParser:
    """Return the parser of ``validate``."""
    parser = options.parser(
        "validate",
        "Predict the step times that others have published, and print how far off the predictions "
        "are: by GPU, source and length, and the ten worst. A row that has a prediction by the "
        "same speeds is not predicted again.",
    )
    parser.add_argument(
        "--rows",
        type=str,
        default="results/published.csv",
        help="CSV file of published step times, each with its source and the flags of its run.",
    )
    parser.add_argument(
        "--only", type=str, default="", help="Only rows whose source has this text."
    )
    parser.add_argument(
        "--out",
        type=str,
        default="results/validation.csv",
        help="CSV file to append the predictions to. The figure is saved beside it, as PNG and "
        "SVG.",
    )
    return parser
