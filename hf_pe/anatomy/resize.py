"""Changes the config fields that have to follow when one size changes: one function for each kind of axis."""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from hf_pe.anatomy.fields import HEAD_SIZES, QUERIES_OF, QUERY_HEADS
from hf_pe.anatomy.numbered import keep_layers_, renumber_


@dataclass(frozen=True)
class Resize:
    """Describe a new size for one field of a config.

    Attributes:
        config: the whole config, a copy that may be changed.
        holder: the config or sub-config that holds the field.
        field: the name of the field.
        before: its value; None where the config leaves it to the model.
        size: its new value.
        kept: indices of the kept units, rising; None where only the size matters.
        keep_head_size: write `head_dim` where the size of a head would change otherwise.
        whole_heads: heads keep their size and become fewer as the hidden width falls.
    """

    config: PretrainedConfig
    holder: PretrainedConfig
    field: str
    before: int | None
    size: int
    kept: list[int] | None = None
    keep_head_size: bool = True
    whole_heads: bool = False


def resize_alone_(change: Resize) -> None:
    """Change nothing, since no other field follows."""


def resize_layers_(change: Resize) -> None:
    """Keep the entries of the kept layers in lists with one entry a layer; a larger stack repeats the last entry."""
    last = (change.before or change.size) - 1
    kept = [min(i, last) for i in range(change.size)] if change.kept is None else change.kept
    keep_layers_(change.holder, change.before or 0, kept)


def resize_vocabulary_(change: Resize) -> None:
    """Change token ids to their indices among the kept rows."""
    if change.kept is not None:
        for part in {id(part): part for part in (change.config, change.holder)}.values():
            renumber_(part, change.kept)


def resize_heads_(change: Resize) -> None:
    """Write down the size of a head, which would follow from the number of heads otherwise."""
    _write_head_size_(change, change.field)


def resize_kv_groups_(change: Resize) -> None:
    """Write down the size of a head, and keep as many query heads in each of the remaining groups."""
    queries = QUERIES_OF[change.field]
    _write_head_size_(change, queries)
    heads = config_value(change.holder, queries) or 0
    setattr(change.holder, queries, heads * change.size // (change.before or 1))


def resize_hidden_(change: Resize) -> None:
    """Scale the last stage's width with the first one's (Swin), and keep either the size or the number of heads.

    Raises:
        ValueError: with `whole_heads`, the new width is no multiple of the size of a head.
    """
    holder, before = change.holder, change.before
    last = getattr(holder, "hidden_size", None) if change.field == "embed_dim" and hasattr(holder, "depths") else None
    if isinstance(last, int) and before and last % before == 0:
        holder.hidden_size = last // before * change.size
    _write_head_size_(change, "num_attention_heads")
    if change.whole_heads:
        _fewer_heads_(holder, change.size, before or change.size)


def resize_experts_(change: Resize) -> None:
    """Refuse fewer experts than each token is routed to, and expert groups of different sizes.

    Raises:
        ValueError: the remaining experts cannot be routed to.
    """
    holder, size = change.holder, change.size
    for name in ("num_experts_per_tok", "moe_topk", "top_k_experts"):
        if (getattr(holder, name, None) or 0) > size:
            raise ValueError(f"each token is routed to {getattr(holder, name)} experts, so there cannot be {size}")
    if size % (getattr(holder, "n_group", None) or 1):
        raise ValueError(f"{size} experts cannot be divided into {holder.n_group} groups of the same size")


def config_value(holder: PretrainedConfig, name: str) -> Any:
    """Return the value of a field, by any of its names; None where it is absent or differs between layers (Gemma 4)."""
    try:
        return getattr(holder, name, None)
    except Exception:  # Gemma 4's config raises an error of its own class
        return None


def _write_head_size_(change: Resize, queries: str) -> None:
    """Set `head_dim` to the present size of a head, where no field states it.

    Args:
        change: would change the size of a head.
        queries: the field that counts query heads.
    """
    holder, heads = change.holder, config_value(change.holder, queries)
    is_stated = any(config_value(holder, name) or vars(holder).get(name) for name in HEAD_SIZES)
    is_needed = change.keep_head_size and not change.whole_heads and not is_stated
    if is_needed and isinstance(heads, int) and heads > 0 and hasattr(holder, "hidden_size"):
        holder.head_dim = holder.hidden_size // heads


def _fewer_heads_(holder: PretrainedConfig, size: int, before: int) -> None:
    """Remove the same fraction of the heads as of the hidden width."""
    for field, heads in holder.to_dict().items():
        if field in (*QUERY_HEADS, *QUERIES_OF) and isinstance(heads, int):
            if heads * size % before:
                raise ValueError(f"a width of {size} is no whole number of heads; {before} are {heads} heads")
            setattr(holder, field, heads * size // before)
