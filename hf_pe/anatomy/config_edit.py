"""Changes one size in a config, with everything in it that follows, and reads sizes back."""

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

    Lists in the same (sub)config with one entry per unit, such as `layer_types`, keep the entries of `kept`
    (default: the first `size`, the last repeated where it grows). Heads keep their size, also where the hidden width
    changes (unless not `keep_head_size`: nothing is said of it; with `whole_heads` they become fewer as it falls);
    key-value heads take along the query heads that read them. Token ids become the places of `kept`.

    Raises:
        ValueError: each token takes more experts, or a token that the config names is not kept.
    """
    new = copy.deepcopy(config)
    holder, field, entry = locate_field(new, path)
    before = getattr(holder, field)
    if entry or field in RATIOS:
        said = _ratio(holder, entry, size) if field in RATIOS else size
        setattr(holder, field, [said if i == int(entry) else each for i, each in enumerate(before)] if entry else said)
        return type(config).from_dict(new.to_dict())
    for follower in FOLLOWERS.get(field, ()):
        if getattr(holder, follower, None) == before:
            setattr(holder, follower, size)
    change = Resize(new, holder, field, before, size, kept, keep_head_size, whole_heads)
    KINDS[AXIS_OF_FIELD[field]].resize_(change)
    setattr(holder, field, size)
    return type(config).from_dict(new.to_dict())  # what the saved config.json will say, not more


def size_in(config: Any, path: str) -> int | None:
    """Return how many units the field at dotted `path` says; None where the config leaves it to the model."""
    holder, field, entry = locate_field(config, path)
    value = getattr(holder, field)
    value = value[int(entry)] if entry else value
    return int(multiplied_width(holder, entry) * value) if field in RATIOS else value


def locate_field(config: Any, path: str) -> tuple[Any, str, str]:
    """The part of a config that a dotted path leads to, the field there, and the entry where that is a list."""
    listed, _, entry = path.rpartition(".")
    *parents, field = (listed if entry.isdigit() else path).split(".")
    for parent in parents:
        config = getattr(config, parent)
    return config, field, entry if entry.isdigit() else ""


def part_of(config: PretrainedConfig, path: str) -> Any:
    """Return the config, or the part of it, that holds the field at dotted `path`."""
    return locate_field(config, path)[0]


def multiplied_width(holder: Any, entry: str) -> int:
    """The hidden width that a ratio multiplies, of the stage `entry` where it is one of a list."""
    told = next((width for name in WIDTHS if (width := getattr(holder, name, None))), 0)
    return int(told[int(entry or 0)] if isinstance(told, (list, tuple)) else told)


def _ratio(holder: Any, entry: str, size: int) -> float:
    """What makes `size` units, whether models round or cut off, in later stages too; whole where it can be."""
    width = multiplied_width(holder, entry)
    return (size + 2**-6) / width if size % width else size // width


def shared_kv_groups(values: dict[str, Any], field: str) -> int | None:
    """Where `field` counts the query heads that key-value heads are shared by: how many key-value heads."""
    told = (values.get(groups) for groups, queries in QUERIES_OF.items() if queries == field)
    groups, heads = next(told, None), values.get(field)
    shared = isinstance(groups, int) and isinstance(heads, int) and groups > 0 and heads % groups == 0
    return groups if shared else None


def size_step(config: PretrainedConfig, path: str, size: int) -> int:
    """What the sizes that the config can say are multiples of: the hidden width, where the ratio is a whole number."""
    holder, field, entry = locate_field(config, path)
    if field not in RATIOS:
        return 1
    try:
        resized(config, path, size - 1)
    except Exception:  # a config may refuse with anything
        return multiplied_width(holder, entry)
    return 1
