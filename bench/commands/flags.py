"""Flags of all verbs; those for predictions are in prediction_flags.py.

This module imports no torch: ``VERB --help``, and the error about a flag or a YAML key that does
not exist, appear at once. Each verb is implemented in the module of its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jsonargparse import ArgumentParser

from bench.commands.prediction_flags import dry_run, hardware, plan, theory, validate
from bench.config import options


def run() -> ArgumentParser:
    """Return the parser of ``run``."""
    parser = options.parser("run", "Measure one cell and append its row to a CSV file.")
    options.add_run_options(parser)
    parser.add_argument(
        "--out", type=str, default="results/runs.csv", help="CSV file to append the row to."
    )
    parser.add_argument(
        "--explain_peak",
        type=bool,
        default=False,
        help="dry_run: also print where the memory peak is, and the ten largest tensors alive "
        "at that point.",
    )
    parser.add_argument(
        "--trace",
        type=str,
        default="",
        help="dry_run with a hardware profile: JSON file to write the step's timeline to, which "
        "Chrome and Perfetto read.",
    )
    parser.add_argument(
        "--memory_trace",
        type=str,
        default="",
        help="JSON file to write the memory over a step to, by kind, on the rank with the highest "
        "peak; report draws several such files side by side.",
    )
    parser.add_argument(
        "--save",
        type=str,
        default="",
        help="New folder to save the weights in after the measured steps, as a Hugging Face "
        "checkpoint.",
    )
    return parser


def sweep() -> ArgumentParser:
    """Return the parser of ``sweep``."""
    parser = options.parser(
        "sweep", "Measure a grid of cells. Any key may hold a list, in YAML or as --key '[a, b]'."
    )
    options.add_grid_options(parser)
    parser.add_argument(
        "--out", type=str, default="results/sweep.csv", help="CSV file to append the rows to."
    )
    parser.add_argument(
        "--retry_failed",
        type=bool,
        default=False,
        help="Measure again the cells whose row is not ok.",
    )
    parser.add_argument(
        "--watch",
        type=str,
        default="",
        help="Folder for report.html, the report of the rows so far. It is written again after "
        "every row, and a browser that shows it reloads it.",
    )
    return parser


def compare() -> ArgumentParser:
    """Return the parser of ``compare``."""
    parser = options.parser(
        "compare",
        "Time a method and a peer, another implementation of it: a step of one, then a step of the "
        "other, in the same processes, after checking that both compute the same loss and "
        "gradients. The method is the peer's own.",
    )
    options.add_grid_options(parser)
    parser.add_argument(
        "--peers",
        type=str,
        default="all",
        help="Peers, separated by commas; all is every peer that computes in a cell's dtype on its "
        "device. Valid: dtensor_tp, dtensor_tp_sp, dtensor_tp_sp_loss, fairscale_tp, megatron_tp, "
        "megatron_tp_sp, torchtitan_tp_sp, yunchang_ulysses, yunchang_ring, "
        "torch_context_parallel, deepspeed_ulysses, deepspeed_alst.",
    )
    parser.add_argument(
        "--part",
        type=str,
        default="model",
        help="model: the whole model. blocks: the transformer blocks alone (attention, MLP, their "
        "norms and residuals), without embedding, final norm, logits and loss, on the same random "
        "hidden states and output gradients. A step includes AdamW either way, for blocks on their "
        "weights.",
    )
    parser.add_argument("--pairs", type=int, default=10, help="Number of pairs of steps.")
    parser.add_argument(
        "--out",
        type=str,
        default="results/compare.csv",
        help="CSV file of ratios. The figure of all its rows is saved beside it, as PNG and SVG.",
    )
    parser.add_argument(
        "--retry_failed",
        type=bool,
        default=False,
        help="Compare again the cells whose row is not ok.",
    )
    return parser


def verify() -> ArgumentParser:
    """Return the parser of ``verify``."""
    parser = options.parser(
        "verify",
        "Train a reference (DP=N, SP=1, GAS=1, every memory saving off) and the given run (DP=N/n, "
        "SP=n, GAS=n) on the same text; compare loss and gradient norm. warmup_steps is not used.",
    )
    options.add_run_options(parser)
    parser.set_defaults({"steps": 50})
    parser.add_argument(
        "--reference",
        type=str,
        default="native",
        help="native: this project's own model, data parallel. transformers: plain Transformers "
        "in one process, which holds the whole model; finds also what is wrong in both trainings.",
    )
    parser.add_argument(
        "--out",
        type=str,
        default="results/verify.csv",
        help="CSV file of the steps. The figure is saved beside it, as PNG and SVG.",
    )
    return parser


def calibrate() -> ArgumentParser:
    """Return the parser of ``calibrate``."""
    parser = options.parser(
        "calibrate",
        "Measure matmuls, attention, memory, copies, the host and every collective on all ranks at "
        "once, and write a profile that --hardware takes. Of the other flags only world_size, "
        "dtype, device and model matter (the model for the heads per rank, in attention).",
    )
    options.add_run_options(parser)
    parser.add_argument(
        "--links_of",
        type=str,
        default="",
        help="Profile from an earlier calibration of the same ranks. Its collectives are taken "
        "over and everything else is measured again, in less than half the time: the speed of a "
        "machine's processors changes sooner than that of its links.",
    )
    parser.add_argument("--out", type=str, default="profile.yml", help="YAML file to write.")
    return parser


def report() -> ArgumentParser:
    """Return the parser of ``report``."""
    parser = options.parser(
        "report",
        "Write one HTML page with charts and a table, and each figure as PNG, SVG and PDF, from "
        "the CSV files of any verb.",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["results/runs.csv"],
        help="CSV files of run, sweep, verify, compare, plan and "
        "scripts/studies/emulated_errors.py, and JSON files of run --trace and --memory_trace. "
        "Their content tells them apart.",
    )
    parser.add_argument(
        "--out",
        type=str,
        default="results/report",
        help="Folder for report.html and the figures.",
    )
    parser.add_argument(
        "--style",
        type=Literal["screen", "paper"],
        default="screen",
        help="screen: figures as PNG, SVG and PDF, as large as they need. paper: vector files only "
        "(PDF and SVG), 3.3 inches wide with one panel and 6.9 with several, in a font of 8 pt.",
    )
    parser.add_argument(
        "--hardware",
        nargs="*",
        default=[],
        help="YAML profiles that dry runs in the rows name, for the memory of their GPUs. The "
        "profiles that come with this project are known.",
    )
    return parser


PARSERS: dict[str, Callable[[], ArgumentParser]] = {
    "run": run,
    "sweep": sweep,
    "compare": compare,
    "verify": verify,
    "calibrate": calibrate,
    "hardware": hardware,
    "dry_run": dry_run,
    "theory": theory,
    "plan": plan,
    "validate": validate,
    "report": report,
}
