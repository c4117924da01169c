"""Lists the kinds of axes, one record each: what can be cut from a model, in which order, and how a cut is verified.

All code that depends on what the units of an axis are reads the record of its kind, so that a new kind of axis is one
entry of `KINDS` and the names that configs give to its size (`hf_pe.anatomy.fields.AXIS_OF_FIELD`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hf_pe.anatomy.fields import AXIS_OF_FIELD, KIND_OF_LIST
from hf_pe.anatomy.numbered import drop_alignment_heads, renumber_layers, renumber_tokens
from hf_pe.anatomy.resize import (
    Resize,
    resize_alone_,
    resize_experts_,
    resize_heads_,
    resize_hidden_,
    resize_kv_groups_,
    resize_layers_,
    resize_vocabulary_,
)

Ablation = Literal["zero", "skip", "never_route"]
"""How units are made ineffective without removing them; see `hf_pe.verify.ablate.ABLATIONS`."""
Comparison = Literal["outputs", "narrowed_outputs", "renumbered_tokens"]
"""How the output of a cut model is compared with the ablated one's; see `hf_pe.verify.comparison.COMPARISONS`."""
Choice = Literal["criterion", "depth", "routing"]
"""How a prune recipe chooses the kept units: by its criterion, by its depth order, or by how often experts are used."""


def nearby_sizes(size: int) -> list[int]:
    """Return the sizes to compare a model with, half of `size` first, which is most often allowed."""
    return [size // 2, size - 1, size * 2, size + 1]


def larger_size(size: int) -> list[int]:
    """Return one larger size, since special tokens would lie outside a smaller vocabulary."""
    return [size + 8]


def renumber_nothing(values: Mapping[str, object], kept: Sequence[int]) -> dict[str, object]:
    """Return no changes, since no field of a generation config names such units."""
    return {}


@dataclass(frozen=True)
class AxisKind:
    """Describe what the units of an axis are, and what follows from it. The defaults suit a width inside each block.

    Attributes:
        name: the last part of the names of such axes: "ffn" in "encoder.ffn".
        cut_order: the order of cutting; a lower number is cut first.
        tiny_size: units in a tiny model that stands in for a larger one; None: as many as the model has.
        is_width: units are single channels or rows, so many that a recipe rounds their number.
        is_depth: units are whole layers of a stack: a cut removes tensors and makes none smaller.
        is_heads: units are attention heads.
        is_residual: units are coordinates of the residual stream, which every block reads and writes.
        is_vocabulary: units are rows of the embedding, which the tokenizer and the config name by token id.
        is_shared: all blocks share the same units, in one group (`EVERYWHERE`); otherwise each block is a group.
        is_fused: several positions of a unit in one dimension lie in fused parts, each with all units (gate and up);
            otherwise they are consecutive (a head).
        takes_queries: a unit is a key-value head and takes along the query heads that read it.
        inside_experts: the kind of the axis where all of its units lie inside experts; "" where they never do.
        has_norms: whether norms may run over the units.
        is_rounded: whether every multiple is an allowed size; otherwise each size is tried with the config.
        choice: how a prune recipe chooses the kept units.
        ablation: how units are made ineffective.
        comparison: how a cut model's output is compared with the ablated one's.
        kept_fraction: the fraction of the units that verification keeps, as (numerator, denominator).
        probe_sizes: takes the size of the model and returns the sizes that discovery compares it with.
        resize_: changes the config fields that follow from the size.
        renumber: takes a generation config, by field, and the kept units; returns the fields that name units by number,
            with their new values.

    Example:
        >>> kind_of("encoder.layers").is_depth
        True
        >>> sorted(KINDS, key=lambda name: KINDS[name].cut_order)[-1]  # hidden width is cut last
        'hidden'
    """

    name: str
    cut_order: int = 1
    tiny_size: int | None = None
    is_width: bool = False
    is_depth: bool = False
    is_heads: bool = False
    is_residual: bool = False
    is_vocabulary: bool = False
    is_shared: bool = False
    is_fused: bool = False
    takes_queries: bool = False
    inside_experts: str = ""
    has_norms: bool = True
    is_rounded: bool = False
    choice: Choice = "criterion"
    ablation: Ablation = "zero"
    comparison: Comparison = "outputs"
    kept_fraction: tuple[int, int] = (2, 3)
    probe_sizes: Callable[[int], list[int]] = nearby_sizes
    resize_: Callable[[Resize], None] = resize_alone_
    renumber: Callable[[Mapping[str, object], Sequence[int]], dict[str, object]] = renumber_nothing


KINDS: dict[str, AxisKind] = {
    kind.name: kind
    for kind in (
        AxisKind(
            "layers",
            cut_order=0,
            is_depth=True,
            has_norms=False,
            choice="depth",
            ablation="skip",
            comparison="narrowed_outputs",
            resize_=resize_layers_,
            renumber=renumber_layers,
        ),
        AxisKind("ffn", tiny_size=24, is_width=True, is_fused=True, inside_experts="expert_ffn", is_rounded=True),
        AxisKind(
            "expert_ffn", tiny_size=16, is_width=True, is_fused=True, inside_experts="expert_ffn", is_rounded=True
        ),
        AxisKind(
            "experts",
            tiny_size=4,
            has_norms=False,
            choice="routing",
            ablation="never_route",
            resize_=resize_experts_,
        ),
        AxisKind(
            "kv_groups",
            tiny_size=4,
            is_heads=True,
            takes_queries=True,
            resize_=resize_kv_groups_,
            renumber=drop_alignment_heads,
        ),
        AxisKind(
            "heads",
            cut_order=2,  # key-value groups take query heads along
            tiny_size=4,
            is_heads=True,
            resize_=resize_heads_,
            renumber=drop_alignment_heads,
        ),
        AxisKind(
            "vocabulary",
            tiny_size=99,
            is_width=True,
            is_vocabulary=True,
            is_shared=True,
            comparison="renumbered_tokens",
            probe_sizes=larger_size,
            resize_=resize_vocabulary_,
            renumber=renumber_tokens,
        ),
        AxisKind(
            "hidden",
            cut_order=3,  # after it, blocks can no longer be compared with the original's
            tiny_size=32,
            is_width=True,
            is_residual=True,
            is_shared=True,
            is_fused=True,
            comparison="narrowed_outputs",
            kept_fraction=(3, 4),  # heads may have to divide it
            resize_=resize_hidden_,
        ),
    )
}
"""The kinds of axes by name."""


def kind_of(axis_name: str) -> AxisKind:
    """Return the kind of an axis by its name, such as "encoder.ffn".

    Raises:
        ValueError: no kind has this name.
    """
    name = axis_name.rpartition(".")[2]
    if name not in KINDS:
        raise ValueError(f"'{axis_name}' names no kind of axis; expected one of {', '.join(KINDS)}")
    return KINDS[name]


def kinds_of(axis_names: Iterable[str]) -> list[AxisKind]:
    """Return the kinds of axes by their names; names in a recipe, plan or report that are of no kind are left out."""
    names = (name.rpartition(".")[2] for name in axis_names)
    return [KINDS[name] for name in names if name in KINDS]


def names_depth(axis_name: str) -> bool:
    """Return whether an axis of this name counts layers."""
    return any(kind.is_depth for kind in kinds_of([axis_name]))


def kind_of_field(field: str) -> AxisKind | None:
    """Return the kind of axis whose size a config field states, as a number, list or ratio; None for other fields."""
    name = AXIS_OF_FIELD.get(field) or KIND_OF_LIST.get(field)
    return None if name is None else KINDS[name]
