"""Summary of a row in two lines."""

from __future__ import annotations

from typing import Any

from bench.theory.model_sizes import in_words


def summary(row: dict[str, Any]) -> str:
    """Return a row with status ok: the cell, its times, bytes, memory and loss; its model."""
    predicted = row["mode"] == "dry_run"
    device = (predicted and row["hardware"]) or row["device"]
    axes = f" x ring {row['ring_parallel_size']}" if row["ring_parallel_size"] > 1 else ""
    if row.get("tensor_parallel_size"):
        axes += f" x tp {row['tensor_parallel_size']}"
    if row.get("expert_parallel_size"):
        axes += f", experts over {row['expert_parallel_size']},"
    if row.get("router_load"):
        axes += f" {row['router_load']} load"
    times, loss = "", ""
    if row.get("step_ms_p50"):
        step = f"{row['step_ms_p50']:.1f} ms per step{' predicted' * predicted}"
        if row.get("step_ms_low"):
            step += f" (interval {row['step_ms_low']:.0f} to {row['step_ms_high']:.0f} ms)"
        times = f"{step}, {row['tokens_per_s']:.0f} tokens/s, "
    if row.get("loss_first") is not None:
        loss = f", loss {row['loss_first']:.4f} -> {row['loss_last']:.4f}"
    return (
        f"{row['method']}{axes} on {row['world_size']} x {device}, {row['seq_len']} tokens: {times}"
        f"{row['comm_bytes_total'] / 2**20:.2f} MiB sent per rank, "
        f"peak {row['peak_memory_bytes'] / 2**20:.1f} MiB{loss}\n"
        f"{row['model']}: {in_words(row)}"
    )
