"""transformers.Trainer on samples that are split over all ranks.

    torchrun --nproc_per_node 8 -m scripts.loops.trainer MODEL DATA.jsonl OUT

MODEL is a folder or a name for from_pretrained, with its tokenizer; DATA has lines with a "text".
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from transformers import DataCollatorForLanguageModeling as Collator

from odysseus import hf
from odysseus.config.run import RunConfig
from odysseus.hf.trainer import SplitTrainer
from odysseus.parallel.mesh import make_mesh, pick_device, start_process_group

TRICKS = {"activation_checkpoint_cpu_offload": True, "tiled_mlp_compute": True}


def main(name, data, out, seq_len=131072, dtype="bf16", **arguments):
    device = pick_device("auto")
    start_process_group(device, timeout_s=1800)
    sizes = {"world_size": dist.get_world_size(), "seq_len": seq_len, "dtype": dtype}
    run = RunConfig(method="ulysses", **sizes, **TRICKS)
    mesh = make_mesh(device, run)
    hf.register(mesh)
    model = AutoModelForCausalLM.from_pretrained(
        name, attn_implementation="ulysses", dtype=run.master_dtype
    )
    hf.prepare(model.train(), mesh, run)

    tokenizer = AutoTokenizer.from_pretrained(name)
    texts = [json.loads(line)["text"] for line in Path(data).read_text().splitlines()]
    samples = [tokenizer(text, truncation=True, max_length=seq_len) for text in texts]
    trainer = SplitTrainer(
        model,
        TrainingArguments(out, per_device_train_batch_size=1, logging_steps=1, **arguments),
        data_collator=Collator(tokenizer, mlm=False),
        train_dataset=samples,
        mesh=mesh,
    )
    trainer.train()
    trainer.save_model(out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
