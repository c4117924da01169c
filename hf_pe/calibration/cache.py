"""Calibration results that the plan and the application of a recipe share, bounded in bytes."""

import dataclasses
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import nn

from hf_pe.machine_memory import available_memory

T = TypeVar("T")

SHARE_OF_FREE_MEMORY = 0.5
"""The fraction of the memory that is free when a cache is made which it may hold by default."""


@dataclass(frozen=True)
class StatisticsKey(Generic[T]):
    """Name a cached value of type `T`.

    Attributes:
        kind: what the value is, such as "second moments".
        detail: what it depends on besides the model, such as the name of an axis.
    """

    kind: str
    detail: Hashable = None


class StatisticsCache:
    """Hold values computed from models, so that each is computed once.

    A value belongs to one model object and is dropped with it. Once more than `limit` bytes are held, the values that
    were used longest ago are dropped; a value larger than the limit is returned but not held.

    Args:
        limit: the most bytes to hold; default: `SHARE_OF_FREE_MEMORY` of the memory that is free now.

    Example:
        >>> import torch
        >>> cache, model = StatisticsCache(limit=1000), torch.nn.Linear(2, 2)
        >>> key = StatisticsKey[torch.Tensor]("sum of weights")
        >>> first = cache.get(model, key, lambda: model.weight.detach().sum())
        >>> cache.get(model, key, lambda: torch.zeros(())) is first
        True
        >>> cache.held_bytes
        4
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = int(available_memory() * SHARE_OF_FREE_MEMORY) if limit is None else limit
        self._values: OrderedDict[tuple[int, StatisticsKey[Any]], tuple[Any, int]] = OrderedDict()
        self._models: dict[int, weakref.ref[nn.Module]] = {}

    def get(self, model: nn.Module, key: StatisticsKey[T], compute: Callable[[], T]) -> T:
        """Return the value of `model` for `key`; call `compute` where it is not held."""
        entry = (id(model), key)
        if entry not in self._values:
            self.put(model, key, value := compute())
            return value
        self._values.move_to_end(entry)
        return cast(T, self._values[entry][0])

    def put(self, model: nn.Module, key: StatisticsKey[T], value: T) -> None:
        """Hold a value in place of one with the same key, if there is room for it."""
        self.pop(model, key)
        size = nested_bytes(value)
        if size > self.limit:
            return
        while self._values and self.held_bytes + size > self.limit:
            self._values.popitem(last=False)
        number = id(model)
        if number not in self._models:
            self._models[number] = weakref.ref(model, lambda _: self._forget(number))
        self._values[number, key] = value, size

    def pop(self, model: nn.Module, key: StatisticsKey[T]) -> T | None:
        """Return the value of `model` for `key` and no longer hold it; None where it is not held."""
        return cast(T | None, self._values.pop((id(model), key), (None, 0))[0])

    @property
    def held_bytes(self) -> int:
        """Return the bytes of all tensors that are held."""
        return sum(size for _, size in [*self._values.values()])  # a copy: a model may go meanwhile, with its values

    def __len__(self) -> int:
        return len(self._values)

    def _forget(self, number: int) -> None:
        """Drop the values of a model that is gone."""
        self._models.pop(number, None)
        for entry in [entry for entry in self._values if entry[0] == number]:
            del self._values[entry]


def nested_bytes(value: Any) -> int:
    """Return the bytes of all tensors inside a value: in containers, dataclasses, modules and plain objects."""
    storages: dict[int, int] = {}
    for tensor in _tensors(value, set()):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def _tensors(value: Any, visited: set[int]) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
        return
    if id(value) in visited or isinstance(value, (str, bytes, int, float, type(None))):
        return
    visited.add(id(value))
    if isinstance(value, nn.Module):
        parts: Iterable[Any] = (*value.parameters(), *value.buffers())
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = value
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        parts = getattr(value, "__dict__", {}).values()
    for part in parts:
        yield from _tensors(part, visited)
