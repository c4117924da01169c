"""Settings: frozen values that users write in Python or in recipe files, with one kind of message for wrong ones."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hf_pe.errors import UsageError, nearest
from hf_pe.plans import Frozen

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _RefusesClearly(ModelMetaclass):
    """Makes a call of a class raise `UsageError` where pydantic refuses the values."""

    def __call__(cls: Any, *arguments: object, **values: object) -> Any:  # noqa: N805  a method of a metaclass
        """Return an instance with the values."""
        try:
            return super().__call__(*arguments, **values)
        except ValidationError as error:
            name = cls.model_fields["recipe"].default if "recipe" in cls.model_fields else cls.__name__
            raise UsageError("\n".join(f"{name}: {line}" for line in wrong_values(error, cls))) from None


class Settings(Frozen, metaclass=_RefusesClearly):
    """Base of what users set. A call with a wrong key or value states what was expected, as a recipe file does.

    Raises:
        UsageError: A key is unknown, or a value has a wrong type or is out of range. All wrong values are named.

    Example:
        >>> class Shape(Settings):
        ...     width: int
        >>> Shape(width=2, widht=2)
        Traceback (most recent call last):
        hf_pe.errors.UsageError: Shape: widht: unknown key; expected one of width. Did you mean 'width'?
    """


def wrong_values(
    error: ValidationError, holder: type[BaseModel], tags: Mapping[str, type[BaseModel]] | None = None
) -> list[str]:
    """Return a sentence for each wrong value: its key, what was expected, what it is, and the nearest spelling.

    Args:
        error: What pydantic raised.
        holder: The class that refused the values.
        tags: The class of each recipe by its name, where `holder` has recipes inside.
    """
    return [_explain(entry, holder, tags or {}) for entry in error.errors()]


def _explain(error: ErrorDetails, holder: type[BaseModel], tags: Mapping[str, type[BaseModel]]) -> str:
    where = ".".join(str(part) for part in error["loc"] if part not in tags)
    got = repr(error.get("input"))
    if error["type"] == "extra_forbidden":
        *holders, key = error["loc"]  # the key is shown as written, even if a recipe has the same name
        fields = _fields_at(holders, holder, tags)
        where = ".".join(str(part) for part in (*(part for part in holders if part not in tags), key))
        return f"{where}: unknown key; expected one of {', '.join(fields)}.{nearest(str(key), fields)}"
    if error["type"] == "missing":
        return f"{where}: missing; it is needed."
    if error["type"] == "union_tag_invalid":
        tag = str(error["ctx"]["tag"])
        return f"{where}.recipe: expected one of {', '.join(tags)}; got '{tag}'.{nearest(tag, tags)}"
    if error["type"] == "union_tag_not_found":
        return f"{where}: expected a 'recipe:' key with one of {', '.join(tags)}; got {got:.80}."
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where}: expected {message}; got {got:.80}."


def _fields_at(
    location: Sequence[int | str], holder: type[BaseModel], tags: Mapping[str, type[BaseModel]]
) -> list[str]:
    """Return the keys that are allowed at a location of the settings."""
    for part in location:
        if part in tags:
            holder = tags[str(part)]
        elif part in holder.model_fields:
            annotation: object = holder.model_fields[part].annotation
            choices = [annotation, *get_args(annotation)]
            holder = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), holder)
    return list(holder.model_fields)
