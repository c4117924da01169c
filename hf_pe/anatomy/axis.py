"""Describes the sizes of a model that can be cut: axes, slots and layouts.

An *axis* is one size that the config states, such as the FFN width, with everything in the model that belongs to it
(a dependency group, in the words of Torch-Pruning). Its *units* are what is kept or cut: FFN neurons, heads, layers. A
*slot* is one tensor dimension that an axis touches. A *layout* states at which positions of it each unit lies.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hf_pe.anatomy.kinds import AxisKind, kind_of

EXPERT_STEP = 8
"""The inner width of experts is a multiple of this: grouped matrix products need rows of 16 bytes, in bfloat16 too."""


@dataclass(frozen=True)
class Layout:
    """Describe at which positions of one tensor dimension the units of an axis lie.

    The dimension holds fused parts one after the other, each with all units; in part i a unit fills `parts[i]`
    consecutive positions. (1,): one position a unit; (64,): a head; (1, 1): gate and up; (192, 64, 64): a key-value
    group in fused query, key and value. With `blocks` above 1, the dimension holds that many blocks one after the
    other, each with all parts of its share of the units (BLOOM: query, key and value head by head).

    With `share` above 1, only the first of `share` equal parts of the units has positions in the dimension (in each
    block of it), and they stand for the units of all parts: a grouped convolution's inputs, or CANINE's embeddings in
    eight pieces, where every part keeps the same units; with `blocks`, the keys of query heads that share them, where
    whole blocks are kept or cut.
    """

    parts: tuple[int, ...] = (1,)
    blocks: int = 1
    share: int = 1

    def length(self, size: int) -> int:
        """Return the length of a dimension that holds `size` units."""
        return size // self.share * sum(self.parts)

    def positions(self, units: torch.Tensor, size: int) -> torch.Tensor:
        """Return the positions, in a dimension of `size` units, that belong to `units` (a 1-d index tensor, rising)."""
        units_a_block = size // self.blocks
        units = units[units % units_a_block < units_a_block // self.share]
        return torch.cat([part.flatten() for part in self._parts(units, size)]).sort().values

    def part_positions(self, number: int, size: int) -> torch.Tensor:
        """Return the positions of part `number`, unit after unit, in a dimension of `size` units."""
        return self._parts(torch.arange(size), size)[number].flatten()

    def positions_by_copy(self, size: int) -> list[torch.Tensor]:
        """Return one index tensor [units] for each position that a unit has: that position of all units, in order."""
        return list(torch.cat(self._parts(torch.arange(size), size), dim=1).T)

    def by_unit(self, tensor: torch.Tensor, size: int) -> torch.Tensor:
        """Order the first dimension, of `size` units, by unit: [units, rest]."""
        order = torch.cat(self._parts(torch.arange(size), size), dim=1)
        return tensor[order.flatten().to(tensor.device)].reshape(size, -1)

    def _parts(self, units: torch.Tensor, size: int) -> list[torch.Tensor]:
        """Return the positions of `units` in each part, [units, positions]."""
        units_a_block = size // self.blocks
        stored = units_a_block // self.share
        block, unit = units // units_a_block * stored * sum(self.parts), units % units_a_block % stored
        return [
            (block + stored * sum(self.parts[:i]) + unit * width)[:, None] + torch.arange(width)
            for i, width in enumerate(self.parts)
        ]


@dataclass(frozen=True)
class Slot:
    """Describe one tensor dimension that an axis touches.

    Attributes:
        name: parameter or buffer name in the state dict.
        dim: the dimension that holds the units; None where whole tensors come and go (depth).
        group: the block whose units it shares ("encoder.layer.0"), or the stack of blocks for depth.
        consumes: True where the units are the input of a linear layer (whose weights a refit may change).
        layout: how the units lie in `dim`.
        entry: where one tensor holds many blocks (experts), the index of this one; `dim` then counts within it.
        subgroups: the units of the group lie in this many equal subgroups (heads; for query heads, key-value groups),
            each of which keeps the same number.
        chunk: this many consecutive units are kept or cut together (a whole head).
        power: kept values are multiplied by (kept units / all units) ** power where the model itself divides or
            multiplies by a root of the width (scores of queries, scaled embeddings).
        powered_parts: `power` applies to this many of the layout's parts, the first ones (all those of the queries).
        offset: what the model adds to the stored values (Gemma's norms multiply with 1 + weight).
    """

    name: str
    dim: int | None
    group: str
    consumes: bool = False
    layout: Layout = field(default_factory=Layout)
    entry: int | None = None
    subgroups: int = 1
    chunk: int = 1
    power: float = 0.0
    powered_parts: int = 1
    offset: float = 0.0

    @property
    def key(self) -> str:
        """The name of the tensor, with the index of the entry where the slot is one: unique among consuming slots."""
        return self.name if self.entry is None else f"{self.name}[{self.entry}]"

    def of(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the slot's tensor in a state dict, or a view of its entry."""
        return state[self.name] if self.entry is None else state[self.name][self.entry]


@dataclass(frozen=True)
class Axis:
    """Hold everything in a model that changes when one config field changes.

    Attributes:
        name: "ffn", "layers", "heads" ...; with the tower in front where there are several ("encoder.ffn").
        config_field: dotted path of the field in the config ("text_config.intermediate_size").
        size: how many units the model has now (per group).
        slots: the tensor dimensions that it touches; empty where only module attributes change (BERT's heads).
        modules: modules with an integer attribute that changes along.
        native: whether the stock config can express the smaller size (the weights follow the field).
        parameters: number of parameters that belong to the axis.
        step: the config can express multiples of this size.
        whole_heads: for the hidden width: heads keep their size and become fewer with it.

    Raises:
        ValueError: the last part of the name is no kind of axis (`hf_pe.anatomy.kinds.KINDS`).
    """

    name: str
    config_field: str
    size: int
    slots: tuple[Slot, ...]
    modules: tuple[str, ...] = ()
    native: bool = True
    parameters: int = 0
    step: int = 1
    whole_heads: bool = False

    def __post_init__(self) -> None:
        kind_of(self.name)

    @property
    def kind(self) -> AxisKind:
        """The record of the axis's kind: what its units are, and what follows from that."""
        return kind_of(self.name)

    @property
    def groups(self) -> tuple[str, ...]:
        """The blocks (or stacks) that each keep units of their own, in the model's order."""
        return tuple(self._by_group)

    @property
    def in_experts(self) -> bool:
        """Whether some of its units lie inside experts that share one tensor."""
        return any(slot.entry is not None for slot in self.slots)

    @functools.cached_property
    def size_multiple(self) -> int:
        """The number that its size has to be a multiple of, for its step, equal subgroups and parts, whole heads."""
        divisors = (n for slot in self.slots for n in (slot.subgroups, slot.chunk, slot.layout.share))
        return math.lcm(self.step, *divisors)

    def equal_parts(self, group: str) -> int:
        """Return in how many equal parts the units of a group lie that all keep the same units."""
        return math.lcm(*(slot.layout.share for slot in self.in_group(group) if slot.layout.blocks == 1))

    @functools.cached_property
    def narrows_heads(self) -> bool:
        """Whether heads become narrower with it."""
        return self.kind.is_residual and any(slot.subgroups > 1 for slot in self.slots)

    def in_group(self, group: str) -> tuple[Slot, ...]:
        """Return the slots of one group."""
        return tuple(self._by_group.get(group, ()))

    def first_units(self, group: str, size: int) -> list[int]:
        """Return the first `size` units, as many in each of the group's subgroups and equal parts."""
        parts = math.lcm(self.in_group(group)[0].subgroups, self.equal_parts(group))
        assert size % parts == 0, f"{size} units of '{self.name}' do not divide among {parts} parts"
        part_size = self.size // parts
        return [part * part_size + unit for part in range(parts) for unit in range(size // parts)]

    def top_units(self, group: str, scores: torch.Tensor, size: int) -> list[int]:
        """Return the `size` units with the largest scores, rising.

        As many come from each subgroup, in whole chunks; of a group with equal parts the same ones from each part.

        Args:
            group: whose units are chosen.
            scores: [units].
            size: number of units, a multiple of the group's subgroups, chunk and equal parts.
        """
        slot, parts = self.in_group(group)[0], self.equal_parts(group)
        divisor = parts if parts > 1 else slot.subgroups * slot.chunk
        assert size % divisor == 0, f"{size} units of '{self.name}' do not divide among {divisor} parts"
        if parts > 1:
            best = scores.reshape(parts, -1).sum(0).topk(size // parts).indices.cpu()
            return sorted((best + torch.arange(parts)[:, None] * (self.size // parts)).flatten().tolist())
        chunks = scores.reshape(slot.subgroups, -1, slot.chunk).sum(2)
        best = chunks.topk(size // slot.subgroups // slot.chunk).indices.cpu()
        first = (best + torch.arange(slot.subgroups)[:, None] * chunks.shape[1]) * slot.chunk
        return sorted((first[..., None] + torch.arange(slot.chunk)).flatten().tolist())

    @functools.cached_property
    def _by_group(self) -> dict[str, list[Slot]]:
        slots_of: dict[str, list[Slot]] = {}
        for slot in self.slots:
            slots_of.setdefault(slot.group, []).append(slot)
        return slots_of


@dataclass(frozen=True)
class Anatomy:
    """Hold the axes of a model, and its number of parameters."""

    axes: tuple[Axis, ...]
    parameters: int

    def named(self, name: str) -> tuple[Axis, ...]:
        """Return the axes called `name`, in full ("encoder.ffn") or without the tower ("ffn": all of them)."""
        return tuple(axis for axis in self.axes if name in (axis.name, axis.kind.name))


Kept = Mapping[str, Sequence[int]]
"""Kept units per group of an axis: {"encoder.layer.0": [0, 2, 3], ...}; for depth per stack."""
