"""Train an unmodified Transformers model on sequences that are split over all GPUs (or CPUs).

    torchrun --nproc_per_node 8 -m scripts.train_hf MODEL TEXT [SEQ_LEN [STEPS]]

MODEL is a folder or a name for from_pretrained, with its tokenizer; TEXT a file whose paragraphs,
separated by blank lines, are packed documents. The trained model is written to MODEL-trained.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler
from transformers import AutoModelForCausalLM, AutoTokenizer

from odysseus import hf
from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import make_mesh, pick_device, start_process_group


def packed(tokenizer, text, seq_len):
    """Samples of seq_len tokens; position_ids restart at every document."""
    ids, positions = [], []
    for document in text.split("\n\n"):
        tokens = tokenizer(document + "\n\n", add_special_tokens=False)["input_ids"]
        ids += tokens
        positions += range(len(tokens))
    names, both = ("input_ids", "position_ids"), torch.tensor([ids, positions])
    samples = both[:, : len(ids) // seq_len * seq_len].split(seq_len, dim=1)
    return [dict(zip(names, sample, strict=True)) for sample in samples]


def main(name, text, seq_len=4096, steps=100):
    device = pick_device("auto")
    start_process_group(device, timeout_s=1800)
    run = RunConfig(  # the same names as the flags of `python -m bench run`
        method="ulysses",
        world_size=dist.get_world_size(),
        seq_len=seq_len,
        dtype="bf16",
        activation_checkpoint_cpu_offload=True,
        tiled_mlp_compute=True,
    )
    mesh = make_mesh(device, run)  # all ranks on the sequence axis, unless run says otherwise
    hf.register(mesh)
    model = AutoModelForCausalLM.from_pretrained(
        name, attn_implementation="ulysses", dtype=torch.float32
    )
    undo = hf.prepare(model.train(), mesh, run)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(name)
    samples = packed(tokenizer, Path(text).read_text(), seq_len)
    if len(samples[0]["input_ids"]) < seq_len:
        sys.exit(f"{text} has fewer than {seq_len} tokens")
    sampler = DistributedSampler(samples, num_replicas=mesh.replicas, rank=mesh.replica)
    for step, shard in enumerate(hf.ShardedLoader(DataLoader(samples, sampler=sampler), mesh)):
        if step == steps:
            break
        loss = hf.loss(model(**shard), shard["shift_labels"], hf.count_items([shard], mesh))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total := loss.detach().clone())
        if dist.get_rank() == 0:
            print(f"step {step}: loss {total.item():.4f}", flush=True)

    undo()  # whole weights again, on every rank
    if dist.get_rank() == 0:
        model.set_attn_implementation("sdpa")
        model.save_pretrained(f"{name}-trained")
        tokenizer.save_pretrained(f"{name}-trained")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:5]))
