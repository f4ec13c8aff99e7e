"""A loop with Accelerate, on samples that are split over all ranks.

    torchrun --nproc_per_node 8 -m scripts.loops.accelerated MODEL DATA.jsonl OUT

MODEL is a folder or a name for from_pretrained, with its tokenizer; DATA has lines with a "text".
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, DistributedSampler
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import DataCollatorForLanguageModeling as Collator

from odysseus import hf
from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import make_mesh

TRICKS = {"activation_checkpoint_cpu_offload": True, "tiled_mlp_compute": True}


def main(name, data, out, seq_len=131072, dtype="bf16", learning_rate=1e-5):
    accelerator = Accelerator()  # starts the process group; the model is not its to wrap
    sizes = {"world_size": accelerator.num_processes, "seq_len": seq_len, "dtype": dtype}
    run = RunConfig(method="ulysses", **sizes, **TRICKS)
    mesh = make_mesh(accelerator.device, run)
    hf.register(mesh)
    model = AutoModelForCausalLM.from_pretrained(
        name, attn_implementation="ulysses", dtype=run.master_dtype
    )
    undo = hf.prepare(model.train(), mesh, run)
    optimizer = accelerator.prepare(torch.optim.AdamW(model.parameters(), lr=learning_rate))

    tokenizer = AutoTokenizer.from_pretrained(name)
    texts = [json.loads(line)["text"] for line in Path(data).read_text().splitlines()]
    samples = [tokenizer(text, truncation=True, max_length=seq_len) for text in texts]
    sampler = DistributedSampler(samples, mesh.replicas, mesh.replica)
    loader = DataLoader(samples, sampler=sampler, collate_fn=Collator(tokenizer, mlm=False))
    for shard in hf.ShardedLoader(loader, mesh):
        loss = hf.loss(model(**shard), shard["shift_labels"], hf.count_items([shard], mesh))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.print(f"loss {accelerator.reduce(loss.detach(), 'sum').item():.6f}")

    undo()  # whole weights again, on every rank
    if accelerator.is_main_process:
        model.set_attn_implementation("sdpa")
        model.save_pretrained(out)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
