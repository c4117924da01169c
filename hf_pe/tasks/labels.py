"""Translates the labels of a data set into the classes of a model, by their names where both have names."""

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
        UsageError: `data.label` is not set.
    """
    if not options.label:
        raise UsageError(
            "data.label: expected the name of the column with the labels, got nothing. For rows in memory: "
            'data=(rows, DataConfig(train="their name", label="their column")).'
        )
    return options.label


def require_classes(config: PretrainedConfig) -> None:
    """Refuse a model that predicts a number instead of classes.

    The softmax over a single output is always 1, so the KL divergence would always be 0 and the accuracy always 1.

    Raises:
        UsageError: the model has one output, or its config says "regression".
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
        config: of the model. Its label names are compared exactly, and else ignoring case.
        feature: of the column of the labels. If it names its classes (`datasets.ClassLabel`), labels are translated by
            name, whatever the order of the classes.
        renamed: the model's name of a label, by the name in the data, where the two differ (`data.label_names`).

    Raises:
        UsageError: a label is none of the model's, or `renamed` has a name that the data set or the model does not
            have. `unused_name_warnings` checks names of a data set that does not name its classes.
    """
    names, renamed = class_names(feature), renamed or {}
    _require_known_names(renamed, names, config)
    class_of = _class_by_text(config) if names is None else _class_by_number([renamed.get(n, n) for n in names], config)
    if names is None:
        labels = [renamed.get(str(label), label) for label in labels]
    return [class_of(label) for label in labels]


def class_names(feature: Any) -> list[str] | None:
    """Return the class names of a `ClassLabel` feature, also one inside lists and dicts; None if there is none."""
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return class_names(feature.feature)
    parts = feature.values() if isinstance(feature, dict) else feature if isinstance(feature, list) else ()
    return next((names for names in map(class_names, parts) if names is not None), None)


def unused_name_warnings(examples: Examples) -> tuple[str, ...]:
    """Return a warning about names in `data.label_names` that no row has as its label, if limits leave rows out.

    A data set that names its classes is checked by these names instead; see `label_numbers`.

    Raises:
        UsageError: there are such names, and no rows are left out.
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
    """Yield the labels of a row as texts: its label, the labels of its words, or the categories of its objects."""
    if isinstance(label, dict):
        label = label.get("category", label.get("categories")) or []
    if isinstance(label, str):
        yield from (label, *label.split())
    elif isinstance(label, Iterable):
        yield from map(str, label)
    else:
        yield str(label)


def _require_known_names(renamed: Mapping[str, str], names: list[str] | None, config: PretrainedConfig) -> None:
    model_labels = _ids(config)
    wrong = [name for name in renamed.values() if _named(name, model_labels) is None]
    if wrong:
        raise UsageError(f"data.label_names: {listed(wrong)} is none of the model's labels: {listed(model_labels)}.")
    absent = [name for name in renamed if names is not None and name not in names]
    if absent:
        raise UsageError(f"data.label_names: {listed(absent)} is none of the data's labels: {listed(names or [])}.")


def _class_by_number(names: list[str], config: PretrainedConfig) -> Callable[[Any], int]:
    """Return the function that translates a number of the data set's classes into one of the model's, by name."""
    model_labels = _ids(config)
    classes = [_named(name, model_labels) for name in names]
    nameless = all(re.fullmatch(r"LABEL_\d+", name) for name in model_labels) or all(name.isdigit() for name in names)
    if nameless and len(names) == config.num_labels and None in classes:
        classes = list(range(len(names)))
    if not any(number is not None for number in classes):
        raise UsageError(
            f"Data: the data set's labels are {listed(names)} and the model's are {listed(model_labels)}, so that "
            "they cannot be matched by name. Name the model's label of each in data.label_names, such as "
            f"{{{names[0]}: {next(iter(model_labels), '')}}}, or use the numbers of the model's classes as integers."
        )

    def class_of(label: int) -> int:
        number = classes[label] if 0 <= label < len(classes) else None
        if number is None:
            name = f"'{names[label]}'" if 0 <= label < len(names) else f"{label} (no label)"
            raise UsageError(f"Data: label {name} is none of the model's: {listed(model_labels)}.")
        return number

    return class_of


def _class_by_text(config: PretrainedConfig) -> Callable[[Any], int]:
    """Return the function that translates a name, or a number of the model's classes, into the model's class."""
    model_labels, count = _ids(config), config.num_labels or 0

    def class_of(label: Any) -> int:
        number = _named(str(label), model_labels)
        if number is None:
            text = str(int(label)) if isinstance(label, bool) else str(label)
            integer = re.fullmatch(r"(0|[1-9]\d*)(\.0*)?", text)
            number = int(integer[1]) if integer and int(integer[1]) < count else None
        if number is None:
            raise UsageError(
                f"Data: label '{label}' is none of the model's: {listed(model_labels)} (or 0..{count - 1}). "
                "Name the model's label for it in data.label_names."
            )
        return number

    return class_of


def _ids(config: PretrainedConfig) -> dict[str, int]:
    stated = config.label2id or {name: number for number, name in (config.id2label or {}).items()}
    return {str(name): int(number) for name, number in stated.items()}


def _named(name: str, model_labels: dict[str, int]) -> int | None:
    """Return the class of that name, or else the only class whose name differs from it in case alone."""
    if name in model_labels:
        return model_labels[name]
    alike = [number for label, number in model_labels.items() if label.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None
