"""Plans: frozen data that separate what a stage will do from doing it.

A plan round-trips through JSON, so it can be printed, edited and carried out later.
"""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hf_pe.anatomy import CustomModules
from hf_pe.errors import old_name_warning

PLAN_FORMAT: Literal[1] = 1
_OLDER = {
    "prune": ("pruned", "structure"),
    "swap": ("backbone-swap", "structure"),
    "separate": ("depthwise-separable", "structure"),
    "distil": ("distilled", "weights"),
    "quantize": ("bitsandbytes", "precision"),
    "cast": ("half-precision", "precision"),
}
"""Tag and kind of change of the recipes, for plans from versions that did not state them."""


def _without_example(schema: dict[str, Any]) -> None:
    """Remove the Python example of a docstring from a JSON schema."""
    if "description" in schema:
        schema["description"] = schema["description"].partition("\n\nExample:")[0]


class OldSpellingWarning(UserWarning):
    """A setting has a new name or value; the old one is still read, for one minor version."""


class Frozen(BaseModel):
    """Base of immutable data: unknown keys are refused, and old spellings of keys and values are read with a warning.

    Raises:
        ValueError: a key is given by its old and by its new name.

    Example:
        >>> class Shape(Frozen):
        ...     old_names = {"breadth": "width"}
        ...     old_values = {"unit": {"pts": "points"}}
        ...     width: int
        ...     unit: str
        >>> with warnings.catch_warnings(action="ignore"):
        ...     Shape(breadth=2, unit="pts")
        Shape(width=2, unit='points')
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra=_without_example, ser_json_inf_nan="strings"
    )
    old_names: ClassVar[Mapping[str, str]] = {}
    """The new names of keys, by their old ones."""
    old_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """For each key the new values, by the old ones."""

    @model_validator(mode="before")
    @classmethod
    def _read_old_spellings(cls, content: object) -> object:
        if not isinstance(content, dict):
            return content
        new: dict[str, object] = {}
        for key, value in content.items():
            name = cls.old_names.get(key, key)
            if name != key and name in content:
                raise ValueError(f"'{key}' is the old name of '{name}', and both are given. Leave out '{key}'.")
            values = cls.old_values.get(name, {})
            is_old_value = isinstance(value, str) and value in values
            new[name] = values[value] if is_old_value else value
            if is_old_value:
                cls._warn_of_old(f"{key}: {value}", f"{name}: {new[name]}")
            elif name != key:
                cls._warn_of_old(key, name)
        return new

    @classmethod
    def _warn_of_old(cls, old: str, new: str) -> None:
        where = cls.model_fields["recipe"].default if "recipe" in cls.model_fields else cls.__name__.lower()
        message = f"{where}: {old_name_warning(old, new)}"
        warnings.warn(message, OldSpellingWarning, stacklevel=5)  # where the settings are made


class SizeChange(Frozen):
    """The size of an axis before and after a stage.

    Attributes:
        axis: name of the axis.
        before: number of units in each group.
        after: number of units that are kept in each group: one number, or one by group where they differ.

    Example:
        >>> SizeChange(axis="ffn", before=8, after={"layer.0": 4, "layer.1": 6}).shown
        '4 to 6'
        >>> SizeChange(axis="ffn", before=8, after={"layer.0": 4, "layer.1": 4}).after
        4
    """

    axis: str
    before: int
    after: int | dict[str, int]

    @field_validator("after")
    @classmethod
    def _uniform_is_one_number(cls, after: int | dict[str, int]) -> int | dict[str, int]:
        """Return one number where all groups keep the same number."""
        if isinstance(after, int):
            return after
        if not after:
            raise ValueError("expected a number of units, or a number for each group; got no group")
        sizes = {*after.values()}
        return sizes.pop() if len(sizes) == 1 else after

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the number of units that are kept, or that of each group where they differ."""
        return (self.after,) if isinstance(self.after, int) else tuple(self.after.values())

    @property
    def shown(self) -> str:
        """Return the kept sizes for people to read: "4", or "4 to 6"."""
        return " to ".join(str(size) for size in dict.fromkeys((min(self.sizes), max(self.sizes))))


class Plan(Frozen):
    """The decisions of one stage.

    Sizes follow from the config alone. Kept units need weights and data, and are None until they are decided. Axes are
    cut in the order of `kept`; the indices of an axis count its units in the model that the cuts before it left.
    """

    old_names: ClassVar = {"form": "custom_modules", "unpacked": "modules_to_not_convert"}

    format_version: Literal[1] = PLAN_FORMAT
    recipe: str
    title: str
    tag: str = Field("", description="Hub tag of the recipe")
    changes: Literal["structure", "weights", "precision"] | None = Field(None, description="what the recipe changes")
    dequantizes: bool = Field(False, description="weights are dequantized in every matrix product afterwards")
    sizes: tuple[SizeChange, ...] = ()
    kept: dict[str, dict[str, list[int]]] | None = None
    parameters: int = Field(description="parameters of the model after this stage")
    parameters_without_embeddings: int
    weight_bytes: int = Field(description="bytes of all weights after this stage, scales included")
    exact: bool = Field(description="False where sizes are estimates, since weights and data decide them")
    modules_to_not_convert: tuple[str, ...] | None = Field(None, description="linear layers that are not quantized")
    sensitivity: dict[str, float] = Field(
        default_factory=dict,
        description="by layer, the KL divergence if only this layer is quantized; see `sensitivity` of the recipe",
    )
    custom_modules: CustomModules | None = Field(
        None, description="custom modules of the model after this stage; None for a stock model"
    )
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = Field((), description="sentences on what may make the stage worthless, shown before it")
    references: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, content: Any) -> Any:
        """Fill in the fields that plans did not have before version 0.1, and drop those that exist no longer."""
        if not isinstance(content, dict):
            return content
        tag, changes = _OLDER.get(str(content.get("recipe")), ("", None))
        older = {"tag": tag, "changes": changes, "dequantizes": content.get("recipe") == "quantize"}
        return older | {key: value for key, value in content.items() if key != "eight_bits"}

    @classmethod
    def _warn_of_old(cls, old: str, new: str) -> None:
        """Read old names without a warning: a program has written them."""
