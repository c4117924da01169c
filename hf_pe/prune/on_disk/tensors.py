"""Read the tensors of a checkpoint on disk one by one, under the names and in the shapes that the model has.

The files of some models have other names or shapes than the model in memory: each expert of a mixture may be a tensor
of its own on disk, and all experts of a layer one tensor in memory. transformers has conversions in both directions;
here they are applied to one group of tensors at a time, when one of the group is read.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    apply_converters,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils.loading_report import LoadStateDictInfo

from hf_pe import progress
from hf_pe.checkpoints.weight_checks import require_present, require_shapes, unread_parts
from hf_pe.errors import UsageError
from hf_pe.files.shards import INDEX, WHOLE, open_shard, read_index, require_whole

Tensors = Mapping[str, torch.Tensor]
Renamed = tuple[str, str | None]
"""The name of the tensor that another one becomes (a part of), and the pattern of the conversion; None without one."""


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors that are read or computed only when they are looked up.

    Attributes:
        sources: by the name of each tensor, what it is read from: a file, or the first tensor of its group.
    """

    sources: dict[str, str]

    def __contains__(self, name: object) -> bool:
        return name in self.sources

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


class Stored(LazyTensors):
    """The tensors in a folder of safetensors."""

    def __init__(self, folder: Path) -> None:
        require_whole(folder)
        if (folder / INDEX).is_file():
            self.sources = read_index(folder)
        elif (folder / WHOLE).is_file():
            with open_shard(folder / WHOLE) as file:
                self.sources = dict.fromkeys(file.keys(), WHOLE)
        else:
            raise UsageError(f"{folder.name} has no {WHOLE} and no {INDEX}: only safetensors can be cut on disk.")
        self.folder = folder

    def __getitem__(self, name: str) -> torch.Tensor:
        with open_shard(self.folder / self.sources[name]) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def shapes(self) -> dict[str, torch.Tensor]:
        """Return all tensors on the meta device."""
        tensors: dict[str, torch.Tensor] = {}
        for shard in sorted({*self.sources.values()}):
            with open_shard(self.folder / shard) as file:
                for name in (name for name, holder in self.sources.items() if holder == shard):
                    tensors[name] = torch.empty(file.get_slice(name).get_shape(), device="meta")
        return tensors


class Converted(LazyTensors):
    """Tensors under other names and in other shapes.

    Tensors that one conversion makes together are a group; the group that was read last is held in memory.

    Attributes:
        groups: the names of the tensors in each group, by the name of the first.
        shapes: all tensors on the meta device.
    """

    def __init__(
        self,
        source: Tensors,
        shapes: Tensors,
        model: PreTrainedModel,
        transforms: list[WeightTransform],
        rename: Callable[[str], Renamed],
        last: Callable[[str], str] = lambda name: name,
    ) -> None:
        """Sort the tensors into groups, by converting `shapes`.

        Args:
            source: the tensors to convert.
            shapes: the same tensors on the meta device; those that are missing from it are left out.
            model: the model on the meta device.
            transforms: the conversions of transformers.
            rename: returns the new name of a tensor, and the pattern of its conversion.
            last: returns the final name of a tensor that a conversion made.
        """
        self.source, self.model, self.last = source, model, last
        self.by_pattern = {p: t for t in transforms if isinstance(t, WeightConverter)
                           for p in t.source_patterns}  # fmt: skip
        self.members: dict[str, list[tuple[str | None, str]]] = {}
        for name in sorted(shapes, key=dot_natural_key):
            new_name, pattern = rename(name)
            self.members.setdefault(new_name, []).append((pattern, name))
        converted = {first: self._convert(first, shapes) for first in self.members}
        self.groups = {first: tuple(tensors) for first, tensors in converted.items()}
        self.shapes = {name: tensor for tensors in converted.values() for name, tensor in tensors.items()}
        self.sources = {name: first for first, names in self.groups.items() for name in names}
        self._held: tuple[str, dict[str, torch.Tensor]] = ("", {})

    def _convert(self, first: str, source: Tensors) -> dict[str, torch.Tensor]:
        """Return the tensors of a group, converted from those in `source`."""
        pattern, name = self.members[first][0]
        if pattern is None:
            return {first: source[name]}
        converter = copy.deepcopy(self.by_pattern[pattern])
        for pattern, name in self.members[first]:
            converter.add_tensor(first, name, pattern or name, source[name])  # type: ignore[arg-type]
        converted = converter.convert(first, model=self.model, config=self.model.config)
        return {self.last(name): part[0] if isinstance(part, list) else part for name, part in converted.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        first = self.sources[name]
        if self._held[0] != first:
            self._held = ("", {})  # so that two groups are never in memory
            self._held = (first, self._convert(first, self.source))
        return self._held[1][name]


def as_in_memory(stored: Stored, model: PreTrainedModel) -> tuple[Converted, list[WeightTransform]]:
    """Return the tensors of a folder as a model holds them, and the conversions that were used.

    Args:
        stored: the tensors of the folder.
        model: the model on the meta device.

    Raises:
        UsageError: tensors of the model are missing or have other shapes, or the folder has tensors for its modules
            that the model does not have (see `unread_parts`).
    """
    state = model.state_dict()
    transforms: list[WeightTransform] = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]

    def rename(name: str) -> Renamed:
        renamed = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if renamed[0] not in state and name in state:  # the file has the model's name already
            renamed = rename_source_key(name, [], [], model.base_model_prefix, state)
        return renamed

    tensors = Converted(stored, stored.shapes(), model, transforms, rename)
    missing = state.keys() - {*tensors} - model.all_tied_weights_keys.keys()
    info = LoadStateDictInfo(missing, {*tensors} - state.keys(), set(), [], {}, set())
    model._adjust_missing_and_unexpected_keys(info)  # older files may have keys that the model expects to ignore
    unread = unread_parts(info.unexpected_keys, model, stored.folder.name)
    if unread:
        progress.warn(f"{stored.folder.name} holds what {type(model).__name__} does not read: {', '.join(unread)}. The "
                      "result is without it.")  # fmt: skip
    require_present(info.missing_keys, model, stored.folder.name)
    shapes = ((name, tensor.shape, state[name].shape) for name, tensor in tensors.shapes.items() if name in state)
    differing = [(name, stored_shape, shape) for name, stored_shape, shape in shapes if stored_shape != shape]
    require_shapes(differing, model, stored.folder.name)
    return tensors, [transform for transform in transforms if transform.was_used()]


def as_on_disk(state: Tensors, shapes: Tensors, model: PreTrainedModel, used: list[WeightTransform]) -> Converted:
    """Return the tensors of a model as the files had them that the conversions `used` were needed to read.

    Args:
        state: the tensors as the model holds them.
        shapes: the same on the meta device.
        model: the model on the meta device.
        used: the conversions that `as_in_memory` used.
    """
    back = [t.reverse_transform() for t in used[::-1]]
    renamings = [t for t in back if isinstance(t, WeightRenaming)]
    converters = [t for t in back if isinstance(t, WeightConverter)]

    def last(name: str) -> str:
        return apply_renamings(name, renamings)

    def rename(name: str) -> Renamed:
        new_name, pattern = apply_converters(name, converters)
        return (new_name, pattern) if pattern else (last(name), None)

    return Converted(state, shapes, model, back, rename, last)
