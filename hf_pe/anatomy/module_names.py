"""Reads names, shapes and attributes of modules.

In "encoder.layer.0.output.dense.weight" the *block* is "encoder.layer.0", its *stack* "encoder.layer" and its *tower*
"encoder"; the *owner* of the tensor is the module "encoder.layer.0.output.dense".
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def enclosing_prefix(name: str) -> str:
    """Return the prefix of all names in the parent of a buffer's owner: "" where the parent is the model itself."""
    parent = name.rpartition(".")[0].rpartition(".")[0]
    return f"{parent}." if parent else ""


def asks(name: str) -> bool:
    """Return whether a linear layer computes queries: "attention.self.query.weight", "attn.q_proj_weight"."""
    return "q" in leaf_name(name)


def leaf_name(name: str) -> str:
    """Return the last part of the name of the layer that a weight or bias belongs to."""
    return name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm, by its class name: architectures define their own classes."""
    return "Norm" in type(module).__name__


def owner_of(model: PreTrainedModel, name: str) -> Any:
    """Return the module that holds the parameter or buffer `name`."""
    return model.get_submodule(name.rpartition(".")[0])


def float_attributes(module: nn.Module) -> dict[str, float]:
    """Return a module's own public attributes that are floats."""
    return {k: v for k, v in vars(module).items() if type(v) is float and not k.startswith("_")}


def enclosing_modules(name: str) -> Iterator[str]:
    """Yield the name of a module and those of the modules that contain it, from the inside out."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def output_dim(model: PreTrainedModel, name: str) -> int:
    """Return the dimension of a linear layer's weight that its outputs lie along."""
    return 1 if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D) else 0


def reads_units(model: PreTrainedModel, key: str, dim: int) -> bool:
    """Return whether dimension `dim` of a weight is the input of a linear layer."""
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
    """Return the block that a tensor lies in: its name up to the first number ("encoder.layer.0")."""
    match = re.match(r"(.*?\.\d+)\.", "." + key)
    return match.group(1)[1:] if match else ""


def all_blocks(names: Iterable[str]) -> set[str]:
    """Return the blocks of all stacks, those inside other blocks too: "stages.2", "stages.2.layers.5"."""
    split = (name.split(".") for name in names)
    return {".".join(parts[: i + 1]) for parts in split for i, part in enumerate(parts) if part.isdigit()}


def stack_of(block: str) -> str:
    """Return the name of the stack that holds a block: "encoder.layer" of "encoder.layer.0"."""
    return block.rpartition(".")[0]


def tower_of(name: str) -> str:
    """Return the first part of a name after "model.": "encoder", "decoder"."""
    return name.removeprefix("model.").partition(".")[0]
