"""Dry runs replaced by a formula, so that searches over them take no time."""

from __future__ import annotations

from bench.planner.dry_runs import DryRuns, Whole
from bench.simulator import fit
from odysseus.config.run import RunConfig

GPU_LIMIT, HOST_LIMIT = 100_000_000, 20_000_000


class NeedByFormula(DryRuns):
    """Need that grows linearly with the length, by as much as the savings leave.

    A token takes 1,000 bytes on a GPU, and 100 on the host for checkpoint offload. The optimizer
    takes 60 MB, divided over the ranks.
    """

    def need(self, run: RunConfig) -> fit.Need:
        token = 1000 - 100 * run.tiled_mlp_compute - 500 * run.recomputes
        token -= 200 * run.activation_checkpoint_cpu_offload
        token -= 50 * (run.ulysses_head_chunks > 1)
        optimizer = 60_000_000 * 4 // run.world_size
        gpu = run.seq_len * 4 // run.shards * token + (0 if run.optimizer_on_host else optimizer)
        host = run.seq_len * 100 if run.activation_checkpoint_cpu_offload else 0
        return fit.Need(gpu, GPU_LIMIT, host, run.host_memory_limit_bytes or HOST_LIMIT, "cuda")

    def memory(self, run: RunConfig) -> Whole:
        return self.whole(run)

    def whole(self, run: RunConfig, with_time: bool = False) -> Whole:
        need = self.need(run)
        memory = dict.fromkeys(
            f"peak_memory_{kind}_bytes"
            for kind in ("parameters", "gradients", "optimizer", "activations", "communication")
        )
        memory = dict.fromkeys(memory, 0) | {"peak_memory_bytes": need.gpu}
        columns = {"status": "ok", "error": "", "peak_host_bytes": need.host, **memory}
        return Whole(need, columns | need.outcome)
