"""What a model is made of: axes, the places they touch, and how units lie in a dimension."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hf_pe.anatomy.kinds import AxisKind, kind_of

EXPERT_STEP = 8
"""The inner width of experts is a multiple of it: grouped matrix products want rows of 16 bytes, in bfloat16 too."""


@dataclass(frozen=True)
class Layout:
    """How the units of an axis lie inside one tensor dimension.

    The dimension holds fused parts one after the other, each with all units; in part i a unit fills `parts[i]`
    neighbouring places. (1,): the unit is the place itself; (64,): a head; (1, 1): gate and up; (192, 64, 64): a
    key-value group in fused query, key and value. Where `blocks` is more than 1, the dimension holds so many of them
    one after the other, each with all parts of its share of the units (BLOOM: query, key and value head by head).

    Where `share` is more than 1, the dimension (each block of it) holds the first of so many equal parts of the units,
    and stands for all of them: a grouped convolution's inputs, CANINE's embeddings in eight pieces, where each part
    keeps the same places; in blocks the keys of query heads that share them, where whole blocks stay or go.
    """

    parts: tuple[int, ...] = (1,)
    blocks: int = 1
    share: int = 1

    def length(self, size: int) -> int:
        """Of a dimension of `size` units."""
        return size // self.share * sum(self.parts)

    def places(self, units: torch.Tensor, size: int) -> torch.Tensor:
        """Return the positions, in a dimension of `size` units, that belong to `units` (a 1-d index tensor, rising)."""
        held = size // self.blocks
        units = units[units % held < held // self.share]
        return torch.cat([part.flatten() for part in self._parts(units, size)]).sort().values

    def part(self, number: int, size: int) -> torch.Tensor:
        """The positions of one part, unit after unit, in a dimension of `size` units."""
        return self._parts(torch.arange(size), size)[number].flatten()

    def apart(self, size: int) -> list[torch.Tensor]:
        """The positions as so many times all units, each in order: [units] for each place that a unit has."""
        return list(torch.cat(self._parts(torch.arange(size), size), dim=1).T)

    def by_unit(self, tensor: torch.Tensor, size: int) -> torch.Tensor:
        """Order the first dimension, of `size` units, by unit: [units, rest]."""
        order = torch.cat(self._parts(torch.arange(size), size), dim=1)
        return tensor[order.flatten().to(tensor.device)].reshape(size, -1)

    def _parts(self, units: torch.Tensor, size: int) -> list[torch.Tensor]:
        """Of each part the places, [units, places]."""
        held = size // self.blocks
        own = held // self.share
        block, unit = units // held * own * sum(self.parts), units % held % own
        return [
            (block + own * sum(self.parts[:i]) + unit * width)[:, None] + torch.arange(width)
            for i, width in enumerate(self.parts)
        ]


@dataclass(frozen=True)
class Slot:
    """One place an axis touches.

    Attributes:
        name: parameter or buffer name in the state dict.
        dim: the dimension that holds the units; None where whole tensors come and go (depth).
        group: the block whose units it shares ("encoder.layer.0"), or the stack of blocks for depth.
        consumes: True where the units are the input of a linear map (what repair may rewrite).
        layout: how the units lie in `dim`.
        entry: where one tensor holds many blocks (experts), the index of this one; `dim` then counts within it.
        heads: in how many heads (for query heads: key-value groups) the units of its group lie; each keeps the same
            number.
        block: so many neighbouring units stay or go together (a whole head).
        power: the values that stay are multiplied by (kept / all) ** power where the model itself divides or multiplies
            by a root of the width (scores of queries, scaled embeddings).
        powered: in so many of the layout's parts, the first ones (all those of the queries).
        offset: what the model adds to the stored values (Gemma's norms multiply with 1 + weight).
    """

    name: str
    dim: int | None
    group: str
    consumes: bool = False
    layout: Layout = field(default_factory=Layout)
    entry: int | None = None
    heads: int = 1
    block: int = 1
    power: float = 0.0
    powered: int = 1
    offset: float = 0.0

    @property
    def key(self) -> str:
        """A name that no other slot of a consuming map has."""
        return self.name if self.entry is None else f"{self.name}[{self.entry}]"

    def of(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The tensor, or its entry: a view."""
        return state[self.name] if self.entry is None else state[self.name][self.entry]


@dataclass(frozen=True)
class Axis:
    """All that moves when one config field moves.

    Attributes:
        name: "ffn", "layers", "heads" ...; with the tower in front where there are several ("encoder.ffn").
        config_field: dotted path of the field in the config ("text_config.intermediate_size").
        size: how many units the model has now (per group).
        slots: the tensors it touches; empty where only module attributes move (BERT's heads).
        modules: modules with an integer attribute that moves along.
        native: whether the stock config alone can say the smaller size (the weights follow the field).
        parameters: number of parameters that belong to the axis.
        step: what the sizes that the config can say are multiples of.
        whole_heads: of the hidden width: heads keep their size and become fewer with it.

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
        """What its units are."""
        return kind_of(self.name)

    @property
    def groups(self) -> tuple[str, ...]:
        """The blocks (or stacks) that each keep their own units, in the model's order."""
        return tuple(self._by_group)

    @property
    def in_experts(self) -> bool:
        """Whether some of its units lie inside experts that share one tensor."""
        return any(slot.entry is not None for slot in self.slots)

    @functools.cached_property
    def heads(self) -> int:
        """What its size has to be a multiple of: its step, heads and other parts that share it evenly, whole heads."""
        shared = (each for slot in self.slots for each in (slot.heads, slot.block, slot.layout.share))
        return math.lcm(self.step, *shared)

    def alike(self, group: str) -> int:
        """In how many equal parts the units of a group lie that keep the same places each."""
        return math.lcm(*(slot.layout.share for slot in self.in_group(group) if slot.layout.blocks == 1))

    @functools.cached_property
    def narrows_heads(self) -> bool:
        """Whether heads become narrower with it."""
        return self.kind.is_residual and any(slot.heads > 1 for slot in self.slots)

    def in_group(self, group: str) -> tuple[Slot, ...]:
        """The slots of one group."""
        return tuple(self._by_group.get(group, ()))

    def first(self, group: str, size: int) -> list[int]:
        """The first `size` units, as many in each of the group's heads or parts."""
        heads = math.lcm(self.in_group(group)[0].heads, self.alike(group))
        assert size % heads == 0, f"{size} units of '{self.name}' do not divide among {heads} parts"
        held = self.size // heads
        return [head * held + unit for head in range(heads) for unit in range(size // heads)]

    def largest(self, group: str, scores: torch.Tensor, size: int) -> list[int]:
        """The `size` units of the largest `scores` [units], rising; as many in each head, whole heads, or the same
        places in all parts."""
        slot, alike = self.in_group(group)[0], self.alike(group)
        parts = alike if alike > 1 else slot.heads * slot.block
        assert size % parts == 0, f"{size} units of '{self.name}' do not divide among {parts} parts"
        if alike > 1:
            best = scores.reshape(alike, -1).sum(0).topk(size // alike).indices.cpu()
            return sorted((best + torch.arange(alike)[:, None] * (self.size // alike)).flatten().tolist())
        blocks = scores.reshape(slot.heads, -1, slot.block).sum(2)
        best = blocks.topk(size // slot.heads // slot.block).indices.cpu()
        first = (best + torch.arange(slot.heads)[:, None] * blocks.shape[1]) * slot.block
        return sorted((first[..., None] + torch.arange(slot.block)).flatten().tolist())

    @functools.cached_property
    def _by_group(self) -> dict[str, list[Slot]]:
        found: dict[str, list[Slot]] = {}
        for slot in self.slots:
            found.setdefault(slot.group, []).append(slot)
        return found


@dataclass(frozen=True)
class Anatomy:
    """The axes found in a model, and its number of parameters."""

    axes: tuple[Axis, ...]
    parameters: int

    def named(self, name: str) -> tuple[Axis, ...]:
        """Axes called `name`, in full ("encoder.ffn") or without the tower ("ffn": all of them)."""
        return tuple(axis for axis in self.axes if name in (axis.name, axis.kind.name))


Kept = Mapping[str, Sequence[int]]
"""Kept units per group of an axis: {"encoder.layer.0": [0, 2, 3], ...}; for depth per stack."""
