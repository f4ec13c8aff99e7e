"""Expert parallelism: an MLP of experts that are shared out over ranks (GShard, arXiv 2006.16668).

Stream between blocks: a sequence shard. Tokens travel to the ranks of their experts and back. The
ranks are neighbours, `expert_parallel_size` of them, whatever attention spreads over them: with
tensor-parallel attention this is Megatron-Core's parallel folding (arXiv 2504.14960). Ranks with
the same experts shard them by ZeRO-3, as all ranks do the router.
"""

from __future__ import annotations

from odysseus.config.run import RunConfig
from odysseus.config.sizes import divisors
from odysseus.model.experts import MixtureOfExperts
from odysseus.model.kernels import Kernels
from odysseus.parallel.cuts import BY_EXPERT
from odysseus.parallel.expert_parallel import ExpertsOfRanks
from odysseus.parallel.mesh import Mesh

SPLIT = {f"experts.{name}": BY_EXPERT for name in ("gate_proj", "up_proj", "down_proj")}


def mlp(run: RunConfig, mesh: Mesh, kernels: Kernels) -> MixtureOfExperts:
    """Build the router and this rank's experts."""
    assert mesh.experts is not None
    own = None  # one rank has all; its host need not wait for how many rows go where
    if mesh.experts.size > 1:
        own = ExpertsOfRanks(run.architecture, kernels, mesh.experts, run.router_shares)
    return MixtureOfExperts(run.architecture, kernels, experts=own)


def check(run: RunConfig) -> None:
    """Raise ValueError unless the model has experts, which the ranks can share out evenly."""
    experts, ranks = run.architecture.num_experts, run.expert_ranks
    if not experts:
        raise ValueError(
            f"method = {run.method} shares out experts, and {run.model.name_or_path} has none; "
            "valid: --mlp zero, tp, tp_sp or tsp, or model.num_experts above 0"
        )
    if experts % ranks:
        valid = [size for size in divisors(run.world_size) if experts % size == 0]
        raise ValueError(
            f"expert_parallel_size = {ranks} does not divide model.num_experts = {experts}; valid: "
            f"{', '.join(map(str, valid))}"
        )
