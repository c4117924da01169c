"""Check that the tensors of a checkpoint are those of the model that is built from it, before anything is written.

transformers loads the tensors that fit, initializes the others at random, and drops those that the model has no
parameter for. A random or dropped tensor inside the backbone makes another model, so it is refused; the head of another
task is dropped on purpose and listed.
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

    A tensor that holds only zeros and negative infinities passes: it is a stored attention mask.

    Args:
        tensors: Names and values, read one after the other.
        source: Name of the model for error messages.

    Raises:
        UsageError: A tensor is not finite; the message names it.
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
    if values.element_size() == 1:  # torch has no isfinite for 8-bit floats
        values = values.float()
    return bool(torch.isfinite(values).all()) or bool(((values == 0) | (values == -torch.inf)).all())


def require_shapes(mismatched: Iterable[tuple[str, Any, Any]], model: PreTrainedModel, source: str) -> None:
    """Refuse tensors whose shape is not that of the model.

    Args:
        mismatched: Name, shape in the checkpoint and shape in the model of each such tensor.
        model: The built model.
        source: Name of the model for error messages.

    Raises:
        UsageError: `mismatched` is not empty.
    """
    texts = [f"{name} is {list(stored)}, expected {list(built)}" for name, stored, built in sorted(mismatched)]
    if texts:
        raise UsageError(
            f"{source}: the weights do not have the shapes that the config gives {type(model).__name__}: "
            f"{listed(texts)}. Correct the config, or fine-tune the model for this task first."
        )


def require_present(missing: Collection[str], model: PreTrainedModel, source: str) -> None:
    """Refuse a model whose checkpoint lacks tensors, since they would be random.

    Two parts may be missing: the pooler of a bare model (only `pooler_output` reads it, and checkpoints of language
    models come without one), and the vector that masks recordings in training (wav2vec 2.0).

    Args:
        missing: Names of the model's tensors that the checkpoint lacks, without tied ones.
        model: The built model.
        source: Name of the model for error messages.

    Raises:
        UsageError: Another part is missing.
    """
    bare = model.base_model is model and hasattr(model, "pooler")
    optional = ("masked_spec_embed", *(["pooler."] if bare else []))
    names = sorted(n for n in missing if not n.removeprefix(f"{model.base_model_prefix}.").startswith(optional))
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
        unexpected: Names of stored tensors that the model has no parameter for.
        model: The built model.
        source: Name of the model for error messages.
        strict: Whether to refuse tensors that belong to a module of the model, instead of listing them too.

    Returns:
        The parts, with the number of tensors in each.

    Raises:
        UsageError: A tensor belongs to a module of the model, such as a bias that the config excludes or an additional
            layer: without it the model computes something else.
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
            f"{source} has weights for {listed(sorted(inside))}, but {type(model).__name__} as its config describes it "
            "does not, and computes something else without them. Correct the config (a bias that it excludes, a number "
            "of layers that is too small), or choose the class that the checkpoint was saved from."
        )
    return tuple(f"{part} ({count} tensor{'s' * (count > 1)})" for part, count in sorted(parts.items()))


def ignored_by_class(stored: Iterable[str], model: PreTrainedModel) -> list[str]:
    """Return the stored names that transformers does not report as unread, since the model's class says to ignore them.

    Args:
        stored: Names of the tensors in the files.
        model: The built model.
    """
    patterns = model._keys_to_ignore_on_load_unexpected
    if not patterns:
        return []
    state, prefix = model.state_dict().keys(), model.base_model_prefix + "."
    ignored = re.compile("|".join(f"({pattern})" for pattern in patterns))
    return [n for n in stored if ignored.search(n) and not {n, prefix + n, n.removeprefix(prefix)} & state]


def _owner(name: str, modules: dict[str, Any]) -> tuple[str, str]:
    """Return the innermost module of the model around a tensor's name, and the part of that module that it lacks."""
    parts = name.split(".")
    depth = next(n for n in range(len(parts) - 1, -1, -1) if ".".join(parts[:n]) in modules)
    return ".".join(parts[:depth]), ".".join(parts[: depth + 1])


def _is_computed_with(name: str, owner: str, modules: dict[str, Any]) -> bool:
    """Return whether a module of the model, or a list of layers, would compute with this tensor if it were read.

    Such a tensor is the bias of a module that has a weight, or a weight inside a list of layers: of an additional
    layer, or of an additional linear layer in each of them. Other tensors belong to another head, or are constants.
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
    """Return whether a tensor is a constant that the model computes itself, or one that its class says to ignore."""
    owner, _, last = name.rpartition(".")
    computed = bool(COMPUTED_CONSTANTS.search(name)) or (owner in modules and last in modules[owner]._buffers)
    return computed or any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_load_unexpected or ())
