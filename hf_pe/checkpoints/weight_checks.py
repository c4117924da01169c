"""Checks that the tensors of a checkpoint are those of the model that is built from it, before anything is written.

transformers loads what fits, draws the rest at random and drops what it does not know. What is drawn or dropped inside
the backbone makes another model, so it is refused; another task's head is dropped knowingly and listed.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.errors import UsageError, listed

COMPUTED_CONSTANTS = re.compile(
    r"(^|\.)(masked_bias|position_ids|token_type_ids|inv_freq|relative_position_index|num_batches_tracked|version)$"
)
"""Last parts of the names of constants that earlier versions of transformers stored and that models now compute."""


def require_finite(tensors: Iterable[tuple[str, torch.Tensor]], source: str) -> None:
    """Refuse weights that hold NaN or infinity.

    A tensor of zeros and negative infinities alone passes: it is a stored attention mask.

    Args:
        tensors: names and values, looked at one after the other.
        source: what errors call the model.

    Raises:
        UsageError: one is not finite; names it.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and not _finite(tensor):
            broken = int((~torch.isfinite(tensor.detach())).sum())
            raise UsageError(
                f"{source}: {broken:,} of the {tensor.numel():,} values of {name} are NaN or infinite; expected finite "
                "weights. The file is damaged, or its training diverged: take an earlier checkpoint."
            )


def _finite(tensor: torch.Tensor) -> bool:
    values = tensor.detach()
    if values.element_size() == 1:  # 8-bit floats know no isfinite
        values = values.float()
    return bool(torch.isfinite(values).all()) or bool(((values == 0) | (values == -torch.inf)).all())


def require_shapes(mismatched: Iterable[tuple[str, Any, Any]], model: PreTrainedModel, source: str) -> None:
    """Refuse tensors whose shape is not that of the model.

    Args:
        mismatched: name, shape in the checkpoint and shape in the model of each such tensor.
        model: as built.
        source: what errors call the model.

    Raises:
        UsageError: there is one.
    """
    texts = [f"{name} is {list(stored)}, expected {list(built)}" for name, stored, built in sorted(mismatched)]
    if texts:
        raise UsageError(
            f"{source}: the weights do not have the shapes that the config gives {type(model).__name__}: "
            f"{listed(texts)}. Correct the config, or fine-tune the model for this task first."
        )


def require_present(missing: Collection[str], model: PreTrainedModel, source: str) -> None:
    """Refuse a model of which the checkpoint lacks tensors, since they would be random.

    Only the pooler of a bare model may be missing (nothing reads it but `pooler_output`, and checkpoints of language
    models come without one), and the vector that masks recordings in training (wav2vec 2.0).

    Args:
        missing: names in the model of what the checkpoint lacks, tied tensors left out.
        model: as built.
        source: what errors call the model.

    Raises:
        UsageError: something else is missing.
    """
    bare = model.base_model is model and hasattr(model, "pooler")
    unread = ("masked_spec_embed", *(["pooler."] if bare else []))
    names = sorted(n for n in missing if not n.removeprefix(f"{model.base_model_prefix}.").startswith(tuple(unread)))
    if names:
        raise UsageError(
            f"{source} has no weights for {listed(names)} of {type(model).__name__}: "
            "fine-tune it for this task first, or choose another task."
        )


def unread_parts(
    unexpected: Iterable[str], model: PreTrainedModel, source: str, *, strict: bool = True
) -> tuple[str, ...]:
    """List the parts of a checkpoint that the model does not read, such as the head of another task.

    Args:
        unexpected: names that the model has no tensor for.
        model: as built.
        source: what errors call the model.
        strict: refuse what belongs to a module that the model has; else it is listed too.

    Returns:
        The parts, with how many tensors each holds.

    Raises:
        UsageError: one belongs to a module that the model has, such as a bias that the config denies or a layer more:
            the model without it computes something else.
    """
    modules = dict(model.named_modules())
    parts: Counter[str] = Counter()
    inside = []
    for name in unexpected:
        owner, part = _owner(name, modules)
        computed = strict and _is_computed_with(name, owner, modules)
        if computed and not _known_unused(name, model, modules):
            inside.append(name)
        else:
            parts[part] += 1
    if inside:
        raise UsageError(
            f"{source} holds {listed(sorted(inside))}, but {type(model).__name__} as its config says has no such "
            "weights and would compute something else without them. Correct the config (a bias that it denies, a "
            "number of layers that is too small), or choose the class that the checkpoint was saved from."
        )
    return tuple(f"{part} ({count} tensor{'s' * (count > 1)})" for part, count in sorted(parts.items()))


def ignored_by_class(stored: Iterable[str], model: PreTrainedModel) -> list[str]:
    """Names in the files that transformers leaves out unasked, since the model's class says that it needs none of them.

    Args:
        stored: names as the files have them.
        model: as built.
    """
    patterns = model._keys_to_ignore_on_load_unexpected
    if not patterns:
        return []
    state, prefix = model.state_dict().keys(), model.base_model_prefix + "."
    ignored = re.compile("|".join(f"({pattern})" for pattern in patterns))
    return [n for n in stored if ignored.search(n) and not {n, prefix + n, n.removeprefix(prefix)} & state]


def _owner(name: str, modules: dict[str, Any]) -> tuple[str, str]:
    """The nearest module around a tensor that the model has, and the part of that module that it lacks."""
    parts = name.split(".")
    depth = next(n for n in range(len(parts) - 1, -1, -1) if ".".join(parts[:n]) in modules)
    return ".".join(parts[:depth]), ".".join(parts[: depth + 1])


def _is_computed_with(name: str, owner: str, modules: dict[str, Any]) -> bool:
    """Whether a module that the model has, or a list of layers, would compute with this tensor if it were read.

    It is the bias of a module that has a weight, or a weight somewhere inside a list of layers: a layer more, or a map
    more in each of them. Other tensors belong to another head, or are constants.
    """
    rest = name.removeprefix(f"{owner}.").split(".")
    if rest[-1] not in ("weight", "bias"):
        return False
    if len(rest) == 1:
        return "weight" in modules[owner]._parameters and rest[0] == "bias"
    steps = owner.split(".")
    around = [modules[".".join(steps[:depth])] for depth in range(1, len(steps) + 1)]
    return any(isinstance(module, nn.ModuleList) for module in around)


def _known_unused(name: str, model: PreTrainedModel, modules: dict[str, Any]) -> bool:
    """Whether it is a constant that the model works out itself, or its class says that it needs none of it."""
    place, _, last = name.rpartition(".")
    computed = bool(COMPUTED_CONSTANTS.search(name)) or (place in modules and last in modules[place]._buffers)
    return computed or any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_load_unexpected or ())
