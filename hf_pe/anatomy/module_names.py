"""Reads names, shapes and attributes of modules: blocks, stacks, towers, owners of tensors."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def enclosing_prefix(name: str) -> str:
    """What a buffer's module lies in, as names there begin: "" for the model itself."""
    inside = name.rpartition(".")[0].rpartition(".")[0]
    return f"{inside}." if inside else ""


def asks(name: str) -> bool:
    """Whether a map makes queries: "attention.self.query.weight", "attn.q_proj_weight"."""
    return "q" in leaf_name(name)


def leaf_name(name: str) -> str:
    """What the map is called that a weight or bias belongs to."""
    return name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: architectures have their own, which share nothing but the name."""
    return "Norm" in type(module).__name__


def owner_of(model: PreTrainedModel, name: str) -> Any:
    """Return the module that holds the parameter or buffer `name`."""
    return model.get_submodule(name.rpartition(".")[0])


def float_attributes(module: nn.Module) -> dict[str, float]:
    """Return a module's own public attributes that are floats."""
    return {k: v for k, v in vars(module).items() if type(v) is float and not k.startswith("_")}


def enclosing_modules(name: str) -> Iterator[str]:
    """A module and those around it, from the inside out."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def output_dim(model: PreTrainedModel, name: str) -> int:
    """The dimension of a map's weight that it writes."""
    return 1 if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D) else 0


def reads_units(model: PreTrainedModel, key: str, dim: int) -> bool:
    """Return whether dimension `dim` of a weight is the input of a linear map."""
    module_name, _, leaf = key.rpartition(".")
    module = model.get_submodule(module_name)
    return leaf == "weight" and (
        (isinstance(module, nn.Linear) and dim == 1) or (isinstance(module, Conv1D) and dim == 0)
    )


def integer_attributes(module: nn.Module) -> dict[str, int]:
    """Return a module's own public attributes that are integers."""
    return {k: v for k, v in vars(module).items() if type(v) is int and not k.startswith("_")}


def tensor_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of all parameters and buffers by name, tied ones under each of their names."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.shape for name, tensor in tensors}


def block_of(key: str) -> str:
    """The block a tensor lies in: the name up to its first number ("encoder.layer.0")."""
    match = re.match(r"(.*?\.\d+)\.", "." + key)
    return match.group(1)[1:] if match else ""


def all_blocks(names: Iterable[str]) -> set[str]:
    """All blocks of all stacks, also those inside others: "stages.2", "stages.2.layers.5"."""
    split = (name.split(".") for name in names)
    return {".".join(parts[: i + 1]) for parts in split for i, part in enumerate(parts) if part.isdigit()}


def stack_of(block: str) -> str:
    """Return the name of what holds a block: "encoder.layer" of "encoder.layer.0"."""
    return block.rpartition(".")[0]


def tower_of(name: str) -> str:
    """Return the first part of a name after "model.": "encoder", "decoder"."""
    return name.removeprefix("model.").partition(".")[0]
