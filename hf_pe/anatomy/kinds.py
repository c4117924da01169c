"""The kinds of axes, one record each: what can be cut from a model, in which order, and how a cut is verified.

Everything that depends on what the units of an axis are asks the record of its kind, so a new kind of axis is one entry
of `KINDS` and the names that configs give to its size (`hf_pe.anatomy.fields.AXIS_OF_FIELD`).
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
"""How a prune recipe chooses the kept units: by its criterion, by its depth order, or by what a router sends them."""


def nearby_sizes(size: int) -> list[int]:
    """Return sizes to compare a model with: something smaller that still divides, else something else."""
    return [size // 2, size - 1, size * 2, size + 1]


def larger_size(size: int) -> list[int]:
    """Return one larger size: a smaller vocabulary would leave special tokens outside."""
    return [size + 8]


def renumber_nothing(values: Mapping[str, object], kept: Sequence[int]) -> dict[str, object]:
    """Return no changes of a generation config: it does not name such units."""
    return {}


@dataclass(frozen=True)
class AxisKind:
    """What the units of an axis are, and what follows from that. The defaults are those of a width inside each block.

    Attributes:
        name: what axes of this kind are called, behind the name of their tower: "ffn" in "encoder.ffn".
        turn: the order of cutting; a lower number is cut first.
        tiny_size: units in a tiny model that stands in for a larger one; None: as many as the model has.
        is_width: units are single channels or rows, of which there are many: a recipe rounds their number.
        is_depth: units are whole layers of a stack; their tensors come and go, and none becomes smaller.
        is_heads: units are attention heads.
        is_residual: units are coordinates of the residual stream, which every block reads and writes.
        is_vocabulary: units are rows of tokens, which the tokenizer and the config name by number.
        is_shared: all blocks share the same units, which lie in one group (`EVERYWHERE`), not in one group a block.
        is_fused: a dimension with several positions a unit has them in parts one after the other, each with all units
            (gate and up); otherwise they are neighbours (a head).
        takes_queries: a unit is a key-value head and takes along the query heads that read it.
        inside_experts: the kind that an axis is of where all of its units lie inside experts; "" where they never do.
        has_norms: whether norms may run over the units.
        is_rounded: whether every multiple is an allowed size; otherwise the config is asked for each.
        choice: how a prune recipe chooses the kept units.
        ablation: how units are made ineffective.
        comparison: how a cut model's output is compared with the ablated one's.
        kept_fraction: the fraction of the units that verification keeps, as (numerator, denominator).
        probe_sizes: from the size of the model to those that it is compared with when axes are discovered.
        resize_: changes in a config what follows from the field.
        renumber: from a generation config, by field, and the kept units to the fields that name units by number, with
            their new values.

    Example:
        >>> kind_of("encoder.layers").is_depth
        True
        >>> sorted(KINDS, key=lambda name: KINDS[name].turn)[-1]  # hidden width is cut last
        'hidden'
    """

    name: str
    turn: int = 1
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
            turn=0,
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
            turn=2,  # key-value groups take some along
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
            turn=3,  # after it, blocks can no longer be compared with the original's
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
"""By name."""


def kind_of(axis_name: str) -> AxisKind:
    """Return the kind of an axis by its name, such as "encoder.ffn".

    Raises:
        ValueError: no kind has this name.
    """
    name = axis_name.rpartition(".")[2]
    if name not in KINDS:
        raise ValueError(f"'{axis_name}' is of no known kind of axis; expected one of {', '.join(KINDS)}")
    return KINDS[name]


def kinds_of(axis_names: Iterable[str]) -> list[AxisKind]:
    """Return the kinds of axes by their names; what a user, a plan or a report names that is of no kind is left out."""
    names = (name.rpartition(".")[2] for name in axis_names)
    return [KINDS[name] for name in names if name in KINDS]


def names_depth(axis_name: str) -> bool:
    """Return whether an axis of this name counts layers."""
    return any(kind.is_depth for kind in kinds_of([axis_name]))


def kind_of_field(field: str) -> AxisKind | None:
    """Return the kind of axis whose size a config field says, also as a list or a ratio; None where it says none."""
    name = AXIS_OF_FIELD.get(field) or KIND_OF_LIST.get(field)
    return None if name is None else KINDS[name]
