"""The tensors of a checkpoint on disk, as the model holds them: read, and converted, when they are asked for.

Some files have other names than the model, or other shapes: each expert of a mixture lies alone there, and all of a
layer are one tensor in memory. transformers knows how they become one another; here its conversions are applied to one
group of tensors at a time.
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
"""What a tensor becomes (a part of), and the pattern of the conversion that makes it, if one does."""


class Lazy(Mapping[str, torch.Tensor]):
    """Tensors that are made when they are asked for: `place` says of each where it is found."""

    place: dict[str, str]

    def __contains__(self, name: object) -> bool:
        return name in self.place

    def __iter__(self) -> Iterator[str]:
        return iter(self.place)

    def __len__(self) -> int:
        return len(self.place)


class Stored(Lazy):
    """The tensors of a folder of safetensors, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        require_whole(folder)
        if (folder / INDEX).is_file():
            self.place = read_index(folder)
        elif (folder / WHOLE).is_file():
            with open_shard(folder / WHOLE) as file:
                self.place = dict.fromkeys(file.keys(), WHOLE)
        else:
            raise UsageError(f"{folder.name} has no {WHOLE} and no {INDEX}: only safetensors can be cut on disk.")
        self.folder = folder

    def __getitem__(self, name: str) -> torch.Tensor:
        with open_shard(self.folder / self.place[name]) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def shapes(self) -> dict[str, torch.Tensor]:
        """All of them on the meta device."""
        found: dict[str, torch.Tensor] = {}
        for each in sorted({*self.place.values()}):
            with open_shard(self.folder / each) as file:
                for name in (name for name, holder in self.place.items() if holder == each):
                    found[name] = torch.empty(file.get_slice(name).get_shape(), device="meta")
        return found


class Converted(Lazy):
    """Tensors under other names and in other shapes; of what becomes one another, the last group is held.

    Attributes:
        groups: the names of those that are made together, in the order of what they are made of.
        shapes: of each on the meta device.
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
        """Sort what is there into groups, by a conversion of `shapes`.

        Args:
            source: what is converted.
            shapes: the same on the meta device; names that are not in it are left out.
            model: on the meta device.
            transforms: the conversions.
            rename: what becomes of a name.
            last: what a conversion's names are called in the end.
        """
        self.source, self.model, self.last = source, model, last
        self.by_pattern = {p: each for each in transforms if isinstance(each, WeightConverter)
                           for p in each.source_patterns}  # fmt: skip
        self.members: dict[str, list[tuple[str | None, str]]] = {}
        for name in sorted(shapes, key=dot_natural_key):
            become, pattern = rename(name)
            self.members.setdefault(become, []).append((pattern, name))
        made = {first: self._made(first, shapes) for first in self.members}
        self.groups = {first: tuple(tensors) for first, tensors in made.items()}
        self.shapes = {name: tensor for tensors in made.values() for name, tensor in tensors.items()}
        self.place = {name: first for first, names in self.groups.items() for name in names}
        self._held: tuple[str, dict[str, torch.Tensor]] = ("", {})

    def _made(self, first: str, source: Tensors) -> dict[str, torch.Tensor]:
        """The tensors of a group."""
        pattern, name = self.members[first][0]
        if pattern is None:
            return {first: source[name]}
        own = copy.deepcopy(self.by_pattern[pattern])
        for pattern, name in self.members[first]:
            own.add_tensor(first, name, pattern or name, source[name])  # type: ignore[arg-type]
        found = own.convert(first, model=self.model, config=self.model.config)
        return {self.last(name): each[0] if isinstance(each, list) else each for name, each in found.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        first = self.place[name]
        if self._held[0] != first:
            self._held = ("", {})  # before the next one is made
            self._held = (first, self._made(first, self.source))
        return self._held[1][name]


def as_in_memory(stored: Stored, model: PreTrainedModel) -> tuple[Converted, list[WeightTransform]]:
    """The tensors as `model` (on the meta device) holds them, and the conversions that were used.

    Raises:
        UsageError: some belong to its modules but not to it (see `unread_parts`) or have other shapes, or some of its
            tensors are not there.
    """
    state = model.state_dict()
    transforms: list[WeightTransform] = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]

    def rename(name: str) -> Renamed:
        found = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if found[0] not in state and name in state:  # it has its name already
            found = rename_source_key(name, [], [], model.base_model_prefix, state)
        return found

    found = Converted(stored, stored.shapes(), model, transforms, rename)
    missing = state.keys() - {*found} - model.all_tied_weights_keys.keys()
    info = LoadStateDictInfo(missing, {*found} - state.keys(), set(), [], {}, set())
    model._adjust_missing_and_unexpected_keys(info)  # some are known to be left over from older files
    unread = unread_parts(info.unexpected_keys, model, stored.folder.name)
    if unread:
        progress.warn(f"{stored.folder.name} holds what {type(model).__name__} does not read: {', '.join(unread)}. The "
                      "result is without it.")  # fmt: skip
    require_present(info.missing_keys, model, stored.folder.name)
    pairs = ((name, tensor.shape, state[name].shape) for name, tensor in found.shapes.items() if name in state)
    require_shapes([each for each in pairs if each[1] != each[2]], model, stored.folder.name)
    return found, [each for each in transforms if each.was_used()]


def as_on_disk(state: Tensors, shapes: Tensors, model: PreTrainedModel, used: list[WeightTransform]) -> Converted:
    """The way back: `state` as files have it that were read by the conversions `used`."""
    back = [each.reverse_transform() for each in used[::-1]]
    renamings = [each for each in back if isinstance(each, WeightRenaming)]
    converters = [each for each in back if isinstance(each, WeightConverter)]

    def last(name: str) -> str:
        return apply_renamings(name, renamings)

    def rename(name: str) -> Renamed:
        become, pattern = apply_converters(name, converters)
        return (become, pattern) if pattern else (last(name), None)

    return Converted(state, shapes, model, back, rename, last)
