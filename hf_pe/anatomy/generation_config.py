"""Updates the fields of a generation config that name layers, heads or tokens by number, and says what a cut loses."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from hf_pe.anatomy.axis import Axis, Kept
from hf_pe.anatomy.config_edit import part_of
from hf_pe.anatomy.numbered import drop_alignment_heads


def generation_changes(values: Mapping[str, Any], config: PretrainedConfig, axis: Axis, kept: Kept) -> dict[str, Any]:
    """Return the fields of a generation config that name renumbered units, with their new values.

    Args:
        values: the generation config, by field.
        config: of the model before the cut.
        axis: the axis that is cut.
        kept: its kept units.

    Returns:
        New values by field; None for a field that names no kept unit any more.

    Raises:
        ValueError: a token that the field requires is not kept.
    """
    holder = part_of(config, axis.config_field)
    tower = config.is_encoder_decoder and axis.name.startswith("encoder.")
    if tower or (holder is not config and holder is not config.get_text_config(decoder=True)):
        return {}
    units = list(next(iter(kept.values())))
    return (drop_alignment_heads if axis.whole_heads else axis.kind.renumber)(values, units)


def generation_losses(values: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one sentence on each capability that a generation config loses or weakens by `changes`.

    Args:
        values: the generation config before, by field.
        changes: the result of `generation_changes`.
    """
    heads, kept_heads = values.get("alignment_heads"), changes.get("alignment_heads")
    if "alignment_heads" not in changes or not heads or kept_heads == heads:
        return ()
    if not kept_heads:
        return (
            "Word timestamps are refused after this cut: none of the attention heads that align words with sound "
            f"(alignment_heads, {len(heads)} of them) keeps its number.",
        )
    count = f"{len(kept_heads)} of {len(heads)}"
    return (f"Word timestamps come from {count} attention heads (alignment_heads) after this cut.",)
