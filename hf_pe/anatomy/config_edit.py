"""Changes one size in a config, with all fields that follow from it, and reads sizes back.

A size is addressed by a dotted path, such as "text_config.intermediate_size"; where a field lists one size a stage, the
last part of the path is the index: "depths.2".
"""

import copy
from typing import Any

from transformers import PretrainedConfig

from hf_pe.anatomy.fields import AXIS_OF_FIELD, FOLLOWERS, QUERIES_OF, RATIOS, WIDTHS
from hf_pe.anatomy.kinds import KINDS
from hf_pe.anatomy.resize import Resize


def resized(
    config: PretrainedConfig,
    path: str,
    size: int,
    kept: list[int] | None = None,
    *,
    keep_head_size: bool = True,
    whole_heads: bool = False,
) -> PretrainedConfig:
    """Return a copy of `config` with the field at dotted `path` set to `size`.

    Lists in the same (sub)config with one entry per unit, such as `layer_types`, keep the entries of `kept`. A
    key-value head takes along the query heads that read it. Token ids become their indices in `kept`.

    Args:
        config: stays as it is.
        path: of the field, such as "text_config.intermediate_size".
        size: the new number of units.
        kept: indices of the kept units, rising; default: the first `size`, the last repeated where the size grows.
        keep_head_size: write down the size of a head before a change of heads or width would change it.
        whole_heads: heads keep their size and become fewer as the hidden width falls.

    Raises:
        ValueError: each token is routed to more experts than remain, or a token that the config names is not kept.
    """
    new = copy.deepcopy(config)
    holder, field, entry = locate_field(new, path)
    before = getattr(holder, field)
    if entry or field in RATIOS:
        new_value = _ratio(holder, entry, size) if field in RATIOS else size
        listed = [new_value if i == int(entry) else value for i, value in enumerate(before)] if entry else new_value
        setattr(holder, field, listed)
        return type(config).from_dict(new.to_dict())
    for follower in FOLLOWERS.get(field, ()):
        if getattr(holder, follower, None) == before:
            setattr(holder, follower, size)
    change = Resize(new, holder, field, before, size, kept, keep_head_size, whole_heads)
    KINDS[AXIS_OF_FIELD[field]].resize_(change)
    setattr(holder, field, size)
    return type(config).from_dict(new.to_dict())  # what the saved config.json will hold, not more


def size_in(config: Any, path: str) -> int | None:
    """Return how many units the field at dotted `path` states; None where the config leaves the size to the model."""
    holder, field, entry = locate_field(config, path)
    value = getattr(holder, field)
    value = value[int(entry)] if entry else value
    return int(multiplied_width(holder, entry) * value) if field in RATIOS else value


def locate_field(config: Any, path: str) -> tuple[Any, str, str]:
    """Split a dotted path into the (sub)config that holds the field, the field's name, and an index in it or ""."""
    listed, _, entry = path.rpartition(".")
    *parents, field = (listed if entry.isdigit() else path).split(".")
    for parent in parents:
        config = getattr(config, parent)
    return config, field, entry if entry.isdigit() else ""


def part_of(config: PretrainedConfig, path: str) -> Any:
    """Return the config, or the sub-config, that holds the field at dotted `path`."""
    return locate_field(config, path)[0]


def multiplied_width(holder: Any, entry: str) -> int:
    """Return the hidden width that an FFN ratio multiplies, of stage `entry` where the config lists one a stage."""
    width = next((value for name in WIDTHS if (value := getattr(holder, name, None))), 0)
    return int(width[int(entry or 0)] if isinstance(width, (list, tuple)) else width)


def _ratio(holder: Any, entry: str, size: int) -> float:
    """Return the ratio that makes `size` units, whether a model rounds or truncates, in later stages too.

    It is a whole number where `size` is a multiple of the hidden width.
    """
    width = multiplied_width(holder, entry)
    return (size + 2**-6) / width if size % width else size // width


def shared_kv_groups(values: dict[str, Any], field: str) -> int | None:
    """Return the number of key-value heads that the query heads counted by `field` share; None where they share none.

    Args:
        values: of a config, by field.
        field: may count query heads.
    """
    key_value_heads = (values.get(groups) for groups, queries in QUERIES_OF.items() if queries == field)
    groups, heads = next(key_value_heads, None), values.get(field)
    shared = isinstance(groups, int) and isinstance(heads, int) and groups > 0 and heads % groups == 0
    return groups if shared else None


def size_step(config: PretrainedConfig, path: str, size: int) -> int:
    """Return the number whose multiples the config can express: the hidden width for ratios that must be whole, else 1.

    Args:
        config: of the model.
        path: of the field.
        size: its units now.
    """
    holder, field, entry = locate_field(config, path)
    if field not in RATIOS:
        return 1
    try:
        resized(config, path, size - 1)
    except Exception:  # a config may refuse with anything
        return multiplied_width(holder, entry)
    return 1
