"""Shrinks a config to that of a tiny model by a table of rules, of which the first that fits a field sets its value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from hf_pe.anatomy import KINDS, AxisKind, by_layer, keep_layers_, names_tokens
from hf_pe.anatomy.fields import AXIS_OF_FIELD, DEPTHS
from hf_pe.dummies.fields import GRID, LARGE_IMAGE, MAX_STAGE_LAYERS, TINY_FIELDS

Value = Any
"""The value of a config field: anything that JSON can express."""


def shrink_(config: PretrainedConfig, *, depth: bool, only: tuple[str, ...] = ()) -> None:
    """Set the sizes in a config, and in its sub-configs, to those of a tiny model.

    Args:
        config: is changed.
        depth: keep all layers; otherwise at most two are kept.
        only: the kinds of axes that become smaller, and "images"; default: all sizes.
    """
    values = config.to_dict()
    for part in map(vars(config).get, values):
        if isinstance(part, PretrainedConfig):
            shrink_(part, depth=depth, only=only)
    fields = [ConfigField(config, values, name, depth, only) for name in values]
    ruled = [(field, next(rule for rule in RULES if rule.fits(field))) for field in fields]
    changes = {field.name: rule.shrunk(field) for field, rule in ruled if rule.shrunk is not unchanged}
    for name, value in changes.items():
        setattr(config, name, value)
    if not only:
        _fit_heads_(config)
    layers = [field.value for field, rule in ruled if rule.shrunk is two_layers]
    if layers and layers[-1] > 2:
        _keep_two_layers_(config, layers[-1])


@dataclass(frozen=True)
class ConfigField:
    """Describe one field of a config before anything is made smaller.

    Attributes:
        config: the config or sub-config that holds it.
        values: all fields of that config, as its file states them.
        name: of the field.
        depth: see `shrink_`.
        only: see `shrink_`.
    """

    config: PretrainedConfig
    values: dict[str, Value]
    name: str
    depth: bool
    only: tuple[str, ...]

    @property
    def value(self) -> Value:
        """The value that the config's file states."""
        return self.values[self.name]

    @property
    def kind(self) -> AxisKind | None:
        """The kind of axis whose size it states as one number; None for other fields."""
        return KINDS[AXIS_OF_FIELD[self.name]] if self.name in AXIS_OF_FIELD else None

    @property
    def is_number(self) -> bool:
        """Whether its value is a whole number."""
        return isinstance(self.value, int) and not isinstance(self.value, bool)

    @property
    def number(self) -> int:
        """Its value, which has to be a whole number."""
        assert isinstance(self.value, int), f"{self.name}: expected a whole number, got {self.value}"
        return self.value

    @property
    def lists(self) -> dict[str, list[Value]]:
        """The fields of the same config that hold lists."""
        return {name: value for name, value in self.values.items() if isinstance(value, list)}

    def sibling(self, name: str) -> Value:
        """Return another field of the same config; None where it is absent or differs between layers."""
        return vars(self.config).get(name)  # getattr raises for fields that differ between layers


@dataclass(frozen=True)
class Rule:
    """Pair a test of fields with the function that returns their tiny value."""

    fits: Callable[[ConfigField], bool]
    shrunk: Callable[[ConfigField], Value]


def unchanged(field: ConfigField) -> Value:
    """Return the value as it is."""
    return field.value


def two_layers(field: ConfigField) -> int:
    """Return at most two layers."""
    return min(field.number, 2)


def fewer_heads(field: ConfigField) -> int:
    """Return a power of two, which divides the hidden width; twice that for query heads that share key-value heads."""
    assert field.kind is not None and field.kind.tiny_size is not None
    key_value_heads = field.sibling("num_key_value_heads")
    fewest = key_value_heads if isinstance(key_value_heads, int) else field.number
    heads = 1 << (min(fewest, field.kind.tiny_size).bit_length() - 1)
    is_shared = not field.kind.takes_queries and isinstance(key_value_heads, int) and field.number > key_value_heads
    return min(field.number, heads * 2 if is_shared else heads)


def tiny_token(value: Value) -> Value:
    """Return a token id within the tiny vocabulary; of lists and dicts, with all ids in them replaced."""
    if isinstance(value, dict):
        return {tiny_token(key): tiny_token(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(tiny_token(item) for item in value)
    return value % 5 if isinstance(value, int) and value >= _tiny_size("vocabulary") else value


RULES = (
    # The layers of each stage are all kept where other lists name some of them by number.
    Rule(
        lambda f: f.name in DEPTHS and isinstance(f.value, list) and any(name.endswith("_blocks") for name in f.lists),
        unchanged,
    ),
    # Other stages keep a few layers each.
    Rule(
        lambda f: f.name in DEPTHS and isinstance(f.value, list),
        lambda f: [min(layers, MAX_STAGE_LAYERS) for layers in f.value],
    ),
    # The sides of feature maps follow the last map, which has one position a patch.
    Rule(
        lambda f: f.name == "backbone_feature_sizes",
        lambda f: [[side * GRID // f.value[-1][-1] for side in sides] for sides in f.value],
    ),
    # Large images lose height and width.
    Rule(
        lambda f: f.name == "image_size" and isinstance(f.value, list) and min(f.value) >= LARGE_IMAGE,
        lambda f: [side // 16 for side in f.value],
    ),
    # A field that counts layers may count stages, which are all kept.
    Rule(
        lambda f: f.kind is not None and f.kind.is_depth
        and any(len(value) == f.value for name, value in f.lists.items() if name in DEPTHS),
        unchanged,
    ),
    # The hidden width may be that of the first of several stages, whose widths are kept.
    Rule(
        lambda f: f.kind is not None and f.kind.is_residual and any(v[:1] == [f.value] for v in f.lists.values()),
        unchanged,
    ),
    # Token ids lie within the tiny vocabulary.
    Rule(
        lambda f: names_tokens(f.name) and (f.is_number or isinstance(f.value, (list, dict))),
        lambda f: tiny_token(f.value),
    ),
    # Only whole numbers are sizes.
    Rule(lambda f: not f.is_number, unchanged),
    # Where widths are kept, an image has a small grid of patches of their own size.
    Rule(
        lambda f: f.name == "image_size" and bool(f.only) and isinstance(f.sibling("patch_size"), int)
        and ("images" in f.only or f.value >= LARGE_IMAGE),
        lambda f: min(f.value, GRID * f.sibling("patch_size")),
    ),
    # Where only some kinds become smaller, the others are kept; patches a side follow the image.
    Rule(
        lambda f: bool(f.only) and (f.kind is None or f.kind.name not in f.only) and f.name != "image_embedding_size",
        unchanged,
    ),
    # Two layers are enough unless the depth itself matters.
    Rule(lambda f: f.kind is not None and f.kind.is_depth and not f.depth, two_layers),
    # Heads still divide the hidden width, and key-value heads the query heads.
    Rule(lambda f: f.kind is not None and f.kind.is_heads, fewer_heads),
    # Where each stage has a number of heads, the width of the first one fits them.
    Rule(
        lambda f: f.name == "embed_dim" and isinstance(f.sibling("num_heads"), (list, tuple)),
        lambda f: min(f.value, f.sibling("num_heads")[0] * TINY_FIELDS["head_dim"]),
    ),
    # Other axes have the size that the record of their kind states.
    Rule(
        lambda f: f.kind is not None and f.kind.tiny_size is not None,
        lambda f: min(f.value, _tiny_size(AXIS_OF_FIELD[f.name])),
    ),
    # Further sizes by name.
    Rule(lambda f: f.name in TINY_FIELDS, lambda f: min(f.value, TINY_FIELDS[f.name])),
    # Other fields called a hidden size are as wide as the residual stream.
    Rule(lambda f: f.name.endswith("hidden_size"), lambda f: min(f.value, _tiny_size("hidden"))),
    # Everything else is no size, or a small one.
    Rule(lambda f: True, unchanged),
)  # fmt: skip
"""The rules in order: the first one that fits a field sets its value."""


def _tiny_size(kind: str) -> int:
    size = KINDS[kind].tiny_size
    assert size is not None
    return size


def _fit_heads_(config: PretrainedConfig) -> None:
    """Set the size of Mamba 2's heads so that they divide its inner width."""
    values = config.to_dict()
    if isinstance(values.get("expand"), int) and {"num_heads", "head_dim"} <= values.keys():
        config.head_dim = values["expand"] * values["hidden_size"] // values["num_heads"]


def _keep_two_layers_(config: PretrainedConfig, count: int) -> None:
    """Keep the entries of the first layer and of one that differs from it, else of the last one, in lists by layer."""
    values = config.to_dict().values()
    lists = [value for value in values if isinstance(value, list) and len(value) == count]
    named = [int(key) for value in values if by_layer(value) for key in value]
    unlike_first = (i for entries in lists for i in range(count) if entries[i] != entries[0])
    keep_layers_(config, count, [0, next(unlike_first, (named or [count - 1])[0])])
