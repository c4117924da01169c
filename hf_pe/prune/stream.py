"""Cuts a checkpoint on disk without ever holding the model: tensor by tensor, by weights alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe import progress
from hf_pe.anatomy import Axis, discover, skeleton
from hf_pe.checkpoints import Source, class_for, copy_beside, load_config, replaced, resolve
from hf_pe.errors import UsageError
from hf_pe.plans import Sketch
from hf_pe.proof import prove
from hf_pe.prune.budget import axes_named, kept_sizes
from hf_pe.surgery import Kept, Narrowed, cut_config

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
ROWS = 1024
"""Units whose weights are in float32 at a time."""
Keep = Mapping[str, float | int | Sequence[int]]


class Stored(Mapping[str, torch.Tensor]):
    """The tensors of a folder of safetensors, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        if (folder / INDEX).is_file():
            self.files: dict[str, str] = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
        elif (folder / WHOLE).is_file():
            with safe_open(folder / WHOLE, "pt") as file:
                self.files = dict.fromkeys(file.keys(), WHOLE)
        else:
            raise UsageError(f"{folder.name} has no {WHOLE} and no {INDEX}: only safetensors can be cut on disk.")
        self.folder = folder

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self.folder / self.files[name], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def cut_checkpoint(
    model: str,
    output: str | Path,
    keep: Keep,
    *,
    norm: Literal[1, 2] = 2,
    multiple: int = 8,
    overwrite: bool = False,
    shard_size: str = "1GB",
) -> Path:
    """Cut a model on disk by the magnitude of its weights, with at most one shard of the result in memory.

    For models that are too large to be held. Without data nothing is repaired: where there is room, a recipe with
    calibration rows loses far less.

    Args:
        model: folder of safetensors or Hub id that is here already.
        output: folder of the result; written beside, then renamed.
        keep: axis to a share (0.7), a number of units, or (layers) the layers that stay.
        norm: L1 or L2 (Li et al. 2017, arXiv:1608.08710).
        multiple: widths are rounded up to it.
        overwrite: replace what `output` holds, after success.
        shard_size: of the files that are written.

    Returns:
        The folder.

    Raises:
        UsageError: no such model or axis, a cut that is not proved, names in the files that are not the model's, layers
            by number without saying which, or `output` is taken.
    """
    source = resolve(model)
    folder = _folder(source)
    config, stored = load_config(source), Stored(folder)
    model_class = class_for(config)
    _require_same_names(config, model_class, stored)
    state: Mapping[str, torch.Tensor] = stored
    told = {name: value for name, value in keep.items() if not isinstance(value, Sequence)}
    sizes = kept_sizes(Sketch(config, model_class), told, multiple)
    layers = {axis.name: value for name, value in keep.items() if isinstance(value, Sequence)
              for axis in axes_named(discover(config, model_class), name)}  # fmt: skip
    with replaced(Path(output), overwrite=overwrite) as fresh:
        for name in sorted([*layers, *sizes], key=lambda name: name not in layers):
            axis = next(a for a in discover(config, model_class).axes if a.name == name)
            if axis.kind == "layers" and name not in layers:
                raise UsageError(
                    f"keep.{name}: which layers matter shows only on data. Say which stay (layers: [0, 1, 3]), or cut "
                    "with a recipe and calibration rows."
                )
            named = {g: list(layers[name]) for g in axis.groups} if name in layers else None
            proof = prove(config, model_class, axis, named)
            if not proof.holds:
                raise UsageError(f"Cutting '{name}' of {model_class.__name__} is refused: {proof.reason}.")
            progress.say(f"choosing units of {name}")
            kept = named or _largest(state, axis, sizes[name], norm)
            new = cut_config(config, axis, len(next(iter(kept.values()))), kept)
            state = Narrowed(state, axis, kept, skeleton(new, model_class).state_dict())
            config = new
        _write(state, config, model_class, fresh, shard_size)
        config.architectures = [model_class.__name__]
        config.save_pretrained(fresh)
        copy_beside(folder, fresh)
    return Path(output)


def _largest(state: Mapping[str, torch.Tensor], axis: Axis, size: int, norm: int) -> Kept:
    """Of each group the units of the largest weights, slot after slot."""
    scores: dict[str, torch.Tensor] = {}
    for slot in axis.slots:
        if slot.name in state:
            units = slot.layout.by_unit(slot.of(state).movedim(slot.dim or 0, 0), axis.size)
            parts = torch.split(units, ROWS)
            found = torch.cat([rows.float().abs().pow(norm).sum(1) for rows in parts])
            scores[slot.group] = scores.get(slot.group, torch.zeros(axis.size)) + found
    return {group: axis.largest(group, scores[group], size) for group in axis.groups}


def _write(
    state: Mapping[str, torch.Tensor],
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    folder: Path,
    shard_size: str,
) -> None:
    """Shard after shard, each tensor checked against the shape that a stock model has."""
    shapes = {n: t for n, t in skeleton(config, model_class).state_dict().items() if n in state}
    wanted = {n: t.to(_dtype(config)) if t.is_floating_point() else t for n, t in shapes.items()}
    plan = split_torch_state_dict_into_shards(wanted, max_shard_size=shard_size)
    for number, (file, names) in enumerate(plan.filename_to_tensors.items(), 1):
        progress.advance("writing", number, len(plan.filename_to_tensors))
        shard = {name: state[name].contiguous() for name in names}
        strange = [name for name in names if shard[name].shape != shapes[name].shape]
        assert not strange, f"{strange[0]}: {shard[strange[0]].shape} where {shapes[strange[0]].shape} is expected"
        save_file(shard, folder / file, metadata={"format": "pt"})
        del shard
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _dtype(config: PretrainedConfig) -> torch.dtype:
    dtype = config.dtype or torch.float32
    found: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return found


def _require_same_names(config: PretrainedConfig, model_class: type[PreTrainedModel], stored: Stored) -> None:
    names = skeleton(config, model_class).state_dict().keys()
    strange = sorted(stored.files.keys() - names)
    if strange:
        raise UsageError(
            f"{stored.folder.name}: {strange[0]} is no tensor of {model_class.__name__} as transformers builds it now. "
            "Load the model once and save it again (from_pretrained, save_pretrained), or cut it with a recipe."
        )


def _folder(source: Source) -> Path:
    if source.folder is None:
        raise UsageError(f"{source.name}: expected a folder; first: hf download {source.path} --local-dir DIR.")
    if source.gguf_file:
        raise UsageError(f"{source.name}: GGUF is not cut on disk; expected safetensors.")
    return source.folder
