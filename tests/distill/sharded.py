"""Student and teacher sharded by FSDP2 over the processes that run; the first one writes down whether they were, and the
loss curve beside that of whole models."""

import copy
import json
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_pe.distill.build import ObjectiveSettings, build
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.tasks import CausalLM

STEPS, BATCH = 5, 8


def learned(student, teacher, rank=0, world=1):
    """The loss of each step; each process sees its part of the batch."""
    ids = torch.randint(6, 190, (STEPS * BATCH, 12), generator=torch.Generator().manual_seed(0))
    part = BATCH // world
    optimizer = torch.optim.SGD(student.parameters(), 0.05)
    curve, objective = [], None
    for step in range(STEPS):
        mine = ids[step * BATCH + rank * part :][:part]
        batch = {"input_ids": mine, "labels": mine}
        if objective is None:
            settings = ObjectiveSettings({"kl": 1.0, "hidden": 0.1}, temperature=2.0)
            objective = build(student, [LiveTeacher(teacher)], CausalLM(), batch, settings)
        value = objective(student, batch)
        value.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = value.loss.detach().clone()
        if world > 1:
            dist.all_reduce(loss)
        curve.append(float(loss) / world)
    return curve


def sharded(model):
    """By layer and as a whole."""
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def main(model, output):
    teacher = LlamaForCausalLM.from_pretrained(model).requires_grad_(False).eval()
    student = randomize_weights_(LlamaForCausalLM(LlamaConfig.from_pretrained(model)), seed=9)
    whole = learned(copy.deepcopy(student), teacher)
    student, teacher = sharded(student), sharded(teacher)
    are = [all(isinstance(p, DTensor) for p in m.parameters()) for m in (student, teacher)]
    curve = learned(student, teacher, dist.get_rank(), dist.get_world_size())
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps({"sharded": are, "curve": curve, "whole": whole}))
