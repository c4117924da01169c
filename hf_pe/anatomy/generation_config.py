"""What a cut changes in the generation config, and what that config can no longer say."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from hf_pe.anatomy.axis import Axis, Kept
from hf_pe.anatomy.config_edit import part_of
from hf_pe.anatomy.numbered import drop_alignment_heads


def generation_changes(values: Mapping[str, Any], config: PretrainedConfig, axis: Axis, kept: Kept) -> dict[str, Any]:
    """Return the fields of a generation config that name what a cut moves, with their new values.

    Args:
        values: the generation config, by field.
        config: of the model before the cut.
        axis, kept: the cut.

    Returns:
        New values by field; None where nothing is left to say.

    Raises:
        ValueError: a token that has to be there is not kept.
    """
    holder = part_of(config, axis.config_field)
    tower = config.is_encoder_decoder and axis.name.startswith("encoder.")
    if tower or (holder is not config and holder is not config.get_text_config(decoder=True)):
        return {}
    units = list(next(iter(kept.values())))
    return (drop_alignment_heads if axis.whole_heads else axis.kind.renumber)(values, units)


def generation_losses(values: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return sentences on what a generation config can no longer say after `changes`.

    Args:
        values: before, by field.
        changes: see `generation_changes`.
    """
    heads, left = values.get("alignment_heads"), changes.get("alignment_heads")
    if "alignment_heads" not in changes or not heads or left == heads:
        return ()
    if not left:
        return (
            "Word timestamps are refused after this cut: none of the attention heads that align words with sound "
            f"(alignment_heads, {len(heads)} of them) is left where it was.",
        )
    return (f"Word timestamps come from {len(left)} of {len(heads)} attention heads (alignment_heads) after this cut.",)
