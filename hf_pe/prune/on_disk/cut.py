"""Cut a checkpoint on disk without ever holding the whole model: tensor by tensor, by the magnitude of its weights."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightTransform

from hf_pe import progress
from hf_pe.anatomy import Axis, discover, meta_model
from hf_pe.anatomy.axis import Kept
from hf_pe.anatomy.generation_config import generation_changes, generation_losses
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.save import copy_beside, say_left_behind
from hf_pe.checkpoints.sentence_transformers import require_width
from hf_pe.checkpoints.source import Source, resolve
from hf_pe.checkpoints.weight_checks import require_finite
from hf_pe.errors import UsageError
from hf_pe.files.json_files import read_object
from hf_pe.files.shards import INDEX
from hf_pe.model_spec import ModelSpec
from hf_pe.outputs import check_output, replaced, require_space
from hf_pe.prune.on_disk.tensors import Stored, Tensors, as_in_memory, as_on_disk
from hf_pe.prune.refit.norm_warnings import rescaling_warnings
from hf_pe.prune.sizes.allowed import ambiguous_width, axes_named, kept_sizes, require_amount, sizes_in_turn
from hf_pe.surgery import Narrowed, cut_config, require_size
from hf_pe.verify.equivalence import require_generation, require_verified_cut

GENERATION = "generation_config.json"
ROWS = 1024
"""Units whose weights are converted to float32 at a time."""
Keep = Mapping[str, float | int | Sequence[int]]
"""What to keep of each axis: a fraction, a number of units, or (layers) their indices."""


def cut_checkpoint(  # noqa: PLR0913  each argument is named by its caller
    model: str,
    output: str | Path,
    keep: Keep,
    *,
    norm: Literal[1, 2] = 2,
    round_to: int = 8,
    tensor_parallel: int = 1,
    overwrite: bool = False,
    shard_size: str = "1GB",
    trust_remote_code: bool = False,
) -> Path:
    """Cut a model on disk by the magnitude of its weights, with at most one shard of the result in memory.

    This is for models that do not fit into memory. Without data no weights are refitted, so where there is room, a
    recipe with calibration rows loses far less.

    Args:
        model: folder of safetensors, or Hub id of a model that is already downloaded.
        output: folder of the result; a folder beside it is written and then renamed.
        keep: what to keep of each axis: a fraction (0.7; 1.0 is all), a number of units, or (layers) the indices of the
            kept layers.
        norm: L1 or L2 (Li et al. 2017, arXiv:1608.08710).
        round_to: widths are rounded up to a multiple of it.
        tensor_parallel: number of devices that will share each layer: heads and widths divide evenly among them.
        overwrite: replace an existing `output`, once the result is complete.
        shard_size: largest size of a file that is written.
        trust_remote_code: run code that comes with the model.

    Returns:
        The folder.

    Raises:
        UsageError: the model or an axis does not exist, a cut is not verified, the files lack tensors of the model or
            hold values that are not finite, a number of layers is given without their indices, or `output` exists.
    """
    _require_clear(keep)
    source = resolve(model, trust_remote_code=trust_remote_code)
    folder = _folder(source)
    config, stored = load_config(source), Stored(folder)
    model_class = class_for(config)
    tensors, used = as_in_memory(stored, meta_model(config, model_class))
    numbers = {name: value for name, value in keep.items() if not isinstance(value, Sequence)}
    spec = ModelSpec(config, model_class)
    sizes, _ = sizes_in_turn(spec, kept_sizes(spec, numbers, round_to, tensor_parallel))
    layers = {axis.name: value for name, value in keep.items() if isinstance(value, Sequence)
              for axis in axes_named(discover(config, model_class), name)}  # fmt: skip
    check_output(Path(output), overwrite=overwrite, inputs=source.inputs())  # before all weights are read
    progress.say("checking the weights")
    require_finite(tensors.items(), source.name)
    remaining = _Remaining(folder, model_class, config, tensors, _generation_settings(folder))
    with replaced(Path(output), overwrite=overwrite, inputs=source.inputs()) as fresh:
        depths: dict[str, Kept] = {}
        for name in (*layers, *sizes):
            axis = remaining.axis(name)
            if axis.kind.is_depth and name not in layers:
                raise UsageError(
                    f"keep.{name}: expected the indices of the layers to keep, such as layers: [0, 1, 3]; got a "
                    "number. Which layers matter shows only on data: name them, or use a recipe with calibration rows."
                )
            if axis.size == sizes.get(name):  # cuts of other axes have shrunk it already
                continue
            kept_layers = {g: list(layers[name]) for g in axis.groups} if name in layers else None
            remaining.require_verified_cut(axis, kept_layers)
            depths |= {name: kept_layers} if kept_layers else {}
            if kept_layers and len(depths) == len(layers):
                _warn(require_generation(config, model_class, depths))
            progress.say(f"choosing units of {name}")
            remaining.cut_(axis, kept_layers or _largest(remaining.tensors, axis, sizes[name], norm))
        remaining.write(fresh, used, shard_size)
        copy_beside(folder, fresh, remaining.config, own_code=trust_remote_code)
        say_left_behind(source)
    return Path(output)


def _require_clear(keep: Mapping[str, object]) -> None:
    """Refuse amounts that are neither a fraction nor a number of units, and a 1 that may be either.

    Raises:
        UsageError: there is such an amount.
    """
    unclear = ambiguous_width(keep)
    if unclear:
        raise UsageError(f"keep.{unclear}.")
    for name, value in keep.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            continue
        try:
            require_amount(value)
        except ValueError as error:
            raise UsageError(f"keep.{name}: {error}.") from error


def _warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        progress.warn(sentence)


@dataclass
class _Remaining:
    """The checkpoint after the cuts so far. Its tensors are read and cut only when they are written.

    Attributes:
        folder: folder of the checkpoint.
        model_class: class of the model.
        config: the config after the cuts.
        tensors: the tensors after the cuts.
        generation: values of the generation config, by field; None where a cut removes the field.
    """

    folder: Path
    model_class: type[PreTrainedModel]
    config: PretrainedConfig
    tensors: Tensors
    generation: dict[str, Any]

    def axis(self, name: str) -> Axis:
        """Return the axis called `name`."""
        return next(axis for axis in discover(self.config, self.model_class).axes if axis.name == name)

    def require_verified_cut(self, axis: Axis, kept: Kept | None) -> None:
        """Refuse an axis whose cuts fail the equivalence check; warn of norms that are not rescaled."""
        require_verified_cut(self.config, self.model_class, axis, kept)
        _warn(rescaling_warnings(ModelSpec(self.config, self.model_class), axis))

    def cut_(self, axis: Axis, kept: Kept) -> None:
        """Cut an axis.

        Raises:
            UsageError: the config cannot express the size, or a module of sentence-transformers needs another width.
        """
        size = len(next(iter(kept.values())))
        new = cut_config(self.config, axis, size, kept)
        require_size(new, axis, size)
        changes = generation_changes(self.generation, self.config, axis, kept)
        _warn(generation_losses(self.generation, changes))
        self.generation |= changes
        self.tensors = Narrowed(self.tensors, axis, kept, meta_model(new, self.model_class).state_dict())
        self.config = new
        require_width(self.folder, getattr(new, "hidden_size", None))

    def write(self, fresh: Path, used: list[WeightTransform], shard_size: str) -> None:
        """Write the tensors, the config and the generation config into the new folder `fresh`."""
        _write(self.tensors, meta_model(self.config, self.model_class), used, fresh, shard_size)
        self.config.architectures = [self.model_class.__name__]
        self.config.save_pretrained(fresh)
        if self.generation:
            stated = {name: value for name, value in self.generation.items() if value is not None}
            (fresh / GENERATION).write_text(json.dumps(stated, indent=2) + "\n", "utf-8")


def _generation_settings(folder: Path) -> dict[str, Any]:
    """Return the values of a folder's generation config, by field; none where it has no such file."""
    file = folder / GENERATION
    settings: dict[str, Any] = read_object(file) if file.is_file() else {}
    return settings


def _largest(state: Mapping[str, torch.Tensor], axis: Axis, size: int, norm: int) -> Kept:
    """Return the units with the largest weights in each group, `size` of them."""
    scores: dict[str, torch.Tensor] = {}
    for slot in axis.slots:
        if slot.name in state:
            units = slot.layout.by_unit(slot.of(state).movedim(slot.dim or 0, 0), axis.size)
            parts = torch.split(units, ROWS)
            norms = torch.cat([rows.float().abs().pow(norm).sum(1) for rows in parts])
            scores[slot.group] = scores.get(slot.group, torch.zeros(axis.size)) + norms
    return {group: axis.top_units(group, scores[group], size) for group in axis.groups}


def _write(state: Tensors, model: PreTrainedModel, used: list[WeightTransform], folder: Path, shard_size: str) -> None:
    """Write the tensors shard by shard, in the names and shapes of the files that were read.

    Args:
        state: the tensors after the cuts.
        model: the cut model on the meta device.
        used: the conversions that were used to read the files.
        folder: folder of the result.
        shard_size: largest size of a file.
    """
    shapes = {n: _cast(t, model.config) for n, t in model.state_dict().items() if n in state}
    tensors = as_on_disk(state, shapes, model, used)
    plan = split_torch_state_dict_into_shards(tensors.shapes, max_shard_size=shard_size)
    require_space(folder, plan.metadata["total_size"], "the result")
    files = {name: file for file, names in plan.filename_to_tensors.items() for name in names}
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name in tensors:
        shard = shards.setdefault(files[name], {})
        shard[name] = _with_own_storage(tensors[name])
        assert shard[name].shape == tensors.shapes[name].shape, (
            f"{name}: expected shape {tensors.shapes[name].shape}, got {shard[name].shape}"
        )
        if len(shard) == len(plan.filename_to_tensors[files[name]]):
            progress.advance("writing", len(shards), len(plan.filename_to_tensors))
            save_file(shard, folder / files[name], metadata={"format": "pt"})
            shard.clear()
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _with_own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous tensor that is no view into a larger one (a stack of experts), as safetensors needs it."""
    return tensor.contiguous() if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone().contiguous()


def _cast(tensor: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """Return a tensor in the dtype that the config states, if it has floating-point values."""
    dtype = config.dtype or torch.float32
    torch_dtype: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return tensor.to(torch_dtype) if tensor.is_floating_point() else tensor


def _folder(source: Source) -> Path:
    if source.folder is None:
        raise UsageError(
            f"{source.name}: expected a folder. Download the model first: hf download {source.path} --local-dir DIR."
        )
    if source.gguf_file:
        raise UsageError(f"{source.name}: expected safetensors, got GGUF, which cannot be cut on disk.")
    return source.folder
