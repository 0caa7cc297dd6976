"""Trains tiny pruned LLaVAs for three steps on two ranks of DeepSpeed, each with a sample of its own.

The arguments are a folder, then models and ZeRO stages such as llava_hf:3; prints the mean losses of each as one JSON
line. In this project's classes the second sample is text alone and brings a blank
image, as LLaVA's collator gives it one, so that both ranks run the tower.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))
from hosts import SAMPLES, all_hosts
from without_operators import leave_out_operators

from flowcut import FlowCut, attach


def train(host: Any, stage: int) -> list[float]:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    model = host.build().train()
    for part in (host.tower(model), model.get_input_embeddings()):
        part.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    batches = [host.labelled([SAMPLES[0]]), host.labelled([SAMPLES[3]])]
    if host.name == "llava_next":
        batches[1] = {**host.labelled([SAMPLES[2]]), "images": [torch.zeros(3, 3, 24, 24)], "image_sizes": [(24, 48)]}
    attach(model, FlowCut(10))
    losses = []
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, optimizer=optimizer, config=config)
    for _ in range(3):
        loss = engine(**batches[rank]).loss
        engine.backward(loss)
        engine.step()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / ranks)
    return losses


def main(folder: str, *runs: str) -> None:
    hosts = all_hosts(Path(folder) / f"tower_{os.environ['RANK']}")
    leave_out_operators()
    deepspeed.init_distributed("gloo", timeout=timedelta(seconds=300))
    for run in runs:
        name, stage = run.split(":")
        losses = train(hosts[name], int(stage))
        if os.environ["RANK"] == "0":
            print(json.dumps([run, losses]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
