"""TRL's DPOTrainer on pairs of samples that are split over all ranks.

    torchrun --nproc_per_node 8 -m scripts.loops.dpo MODEL DATA.jsonl OUT

MODEL is a folder or a name for from_pretrained, with its tokenizer, and also the reference; DATA
has lines with a "prompt", a "chosen" and a "rejected" answer.
"""

import sys

import torch.distributed as dist
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from odysseus import hf
from odysseus.config.run import RunConfig
from odysseus.hf.preferences import SplitPreferences
from odysseus.parallel.mesh import make_mesh, pick_device, start_process_group

TRICKS = {"activation_checkpoint_cpu_offload": True, "tiled_mlp_compute": True}
PREPARED = {"bf16": False, "activation_checkpointing": False}  # RunConfig decides these


class SplitDPOTrainer(SplitPreferences, DPOTrainer):
    pass


def main(name, data, out, seq_len=131072, dtype="bf16", **arguments):
    device = pick_device("auto")
    start_process_group(device, timeout_s=1800)
    sizes = {"world_size": dist.get_world_size(), "seq_len": seq_len, "dtype": dtype}
    run = RunConfig(method="ulysses", **sizes, **TRICKS)
    mesh = make_mesh(device, run)
    hf.register(mesh)
    model, reference = (
        AutoModelForCausalLM.from_pretrained(
            name, attn_implementation="ulysses", dtype=run.master_dtype
        ).train()
        for _ in range(2)
    )
    hf.prepare(model, mesh, run)
    hf.prepare(reference.requires_grad_(False), mesh, run)
    options = {"per_device_train_batch_size": 1, "logging_steps": 1} | PREPARED | arguments
    trainer = SplitDPOTrainer(
        model,
        reference,
        DPOConfig(out, max_length=seq_len, **options),
        train_dataset=load_dataset("json", data_files=data, split="train"),
        processing_class=AutoTokenizer.from_pretrained(name),
        mesh=mesh,
    )
    trainer.train()
    trainer.save_model(out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
