"""Translate the labels of a data set into the classes of a model."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import datasets
from transformers import PretrainedConfig

from hf_pe.data import DataConfig, Examples
from hf_pe.errors import UsageError, listed, nearest


def label_column(options: DataConfig) -> str:
    """Return the name of the column with the labels.

    Raises:
        UsageError: none is named.
    """
    if not options.label:
        raise UsageError(
            "data.label: expected the name of the column with the labels, got nothing. For rows in memory: "
            'data=(rows, DataConfig(train="their name", label="their column")).'
        )
    return options.label


def require_classes(config: PretrainedConfig) -> None:
    """Refuse a model that predicts a number instead of classes.

    Over one output every softmax is 1: the KL divergence is always 0 and the accuracy always 1.

    Raises:
        UsageError: it has one output, or its config says "regression".
    """
    if config.num_labels == 1 or config.problem_type == "regression":
        outputs = f"{config.num_labels} output{'s' if config.num_labels != 1 else ''}"
        raise UsageError(
            f"Expected a model with two classes or more, got one with {outputs} that predicts a number (a reranker's "
            "score, a regression): distillation and evaluation of regression are not supported yet. hf-pe cut, hf-pe "
            "quantize and hf-pe export work."
        )


def label_numbers(
    labels: Iterable[Any], config: PretrainedConfig, feature: Any = None, renamed: Mapping[str, str] | None = None
) -> list[int]:
    """Return the model's class of each label.

    Args:
        labels: names or numbers.
        config: of the model; its names are matched exactly, else without case.
        feature: of the column they come from. Where it names its classes (`datasets.ClassLabel`), the model's are
            matched with these names, whatever their order.
        renamed: the model's name of a label, by the name in the data, where the two differ (`data.label_names`).

    Raises:
        UsageError: one is none of the model's, or `renamed` names one that the data set or the model does not have.
            Where the data set names no classes, see `unused_name_warnings`.
    """
    names, renamed = class_names(feature), renamed or {}
    _require_known_names(renamed, names, config)
    class_of = _class_by_text(config) if names is None else _class_by_number([renamed.get(n, n) for n in names], config)
    if names is None:
        labels = [renamed.get(str(label), label) for label in labels]
    return [class_of(label) for label in labels]


def class_names(feature: Any) -> list[str] | None:
    """Return the names of the `ClassLabel` in a feature, also inside lists and dicts; None where there is none."""
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return class_names(feature.feature)
    parts = feature.values() if isinstance(feature, dict) else feature if isinstance(feature, list) else ()
    return next((names for names in map(class_names, parts) if names is not None), None)


def unused_name_warnings(examples: Examples) -> tuple[str, ...]:
    """Return a sentence on names in `data.label_names` that no row has as its label, where limits leave rows out.

    Of a data set that names its classes, these count, not the rows; see `label_numbers`.

    Raises:
        UsageError: there are such names, and all rows are used.
    """
    options = examples.config
    if not options.label_names or not options.label or class_names(examples.train.features[options.label]) is not None:
        return ()
    used = {
        name for rows in (examples.train, examples.eval) for each in rows[options.label] for name in _names_in(each)
    }
    absent = [name for name in options.label_names if name not in used]
    if not absent:
        return ()
    sentence = f"data.label_names: {listed(absent)} is no label of any row that is used: {listed(sorted(used))}."
    if examples.counts.over_limit:
        return (sentence,)
    raise UsageError(f"{sentence}{nearest(absent[0], used)} Correct the name, or leave it out.")


def _names_in(label: Any) -> Iterator[str]:
    """Yield the labels of a row as texts: one, those of its words, or the categories of its objects."""
    if isinstance(label, dict):
        label = label.get("category", label.get("categories")) or []
    if isinstance(label, str):
        yield from (label, *label.split())
    elif isinstance(label, Iterable):
        yield from map(str, label)
    else:
        yield str(label)


def _require_known_names(renamed: Mapping[str, str], names: list[str] | None, config: PretrainedConfig) -> None:
    known = _ids(config)
    wrong = [name for name in renamed.values() if _named(name, known) is None]
    if wrong:
        raise UsageError(f"data.label_names: {listed(wrong)} is none of the model's labels: {listed(known)}.")
    absent = [name for name in renamed if names is not None and name not in names]
    if absent:
        raise UsageError(f"data.label_names: {listed(absent)} is none of the data's labels: {listed(names or [])}.")


def _class_by_number(names: list[str], config: PretrainedConfig) -> Callable[[Any], int]:
    """Translate numbers of the data set's classes by their names."""
    known = _ids(config)
    classes = [_named(name, known) for name in names]
    nameless = all(re.fullmatch(r"LABEL_\d+", name) for name in known) or all(name.isdigit() for name in names)
    if nameless and len(names) == config.num_labels and None in classes:
        classes = list(range(len(names)))
    if not any(number is not None for number in classes):
        raise UsageError(
            f"Data: the data set's labels are {listed(names)} and the model's are {listed(known)}: which is which "
            f"cannot be told. Say it in data.label_names, such as {{{names[0]}: {next(iter(known), '')}}}, or give the "
            "numbers of the model's classes as plain integers."
        )

    def class_of(label: int) -> int:
        number = classes[label] if 0 <= label < len(classes) else None
        if number is None:
            name = f"'{names[label]}'" if 0 <= label < len(names) else f"{label} (no label)"
            raise UsageError(f"Data: label {name} is none of the model's: {listed(known)}.")
        return number

    return class_of


def _class_by_text(config: PretrainedConfig) -> Callable[[Any], int]:
    """Translate names, or the numbers of the model's classes."""
    known, count = _ids(config), config.num_labels or 0

    def class_of(label: Any) -> int:
        number = _named(str(label), known)
        if number is None:
            text = str(int(label)) if isinstance(label, bool) else str(label)
            whole = re.fullmatch(r"(0|[1-9]\d*)(\.0*)?", text)
            number = int(whole[1]) if whole and int(whole[1]) < count else None
        if number is None:
            raise UsageError(
                f"Data: label '{label}' is none of the model's: {listed(known)} (or 0..{count - 1}). "
                "Say what the model calls it in data.label_names."
            )
        return number

    return class_of


def _ids(config: PretrainedConfig) -> dict[str, int]:
    stated = config.label2id or {name: number for number, name in (config.id2label or {}).items()}
    return {str(name): int(number) for name, number in stated.items()}


def _named(name: str, known: dict[str, int]) -> int | None:
    """Return the class of that name, else the only one that differs from it in case alone."""
    if name in known:
        return known[name]
    alike = [number for each, number in known.items() if each.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None
