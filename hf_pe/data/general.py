"""Read the general text of a run: text of another kind than that of training, on which forgetting is measured."""

import datasets

from hf_pe.data.config import DataConfig, names_of
from hf_pe.data.fingerprint import fingerprint
from hf_pe.data.load import Examples, read_part
from hf_pe.data.select import digest, sample
from hf_pe.errors import UsageError, listed

DEFAULTS = ("builtin:pydoc", "builtin:docstrings:huggingface_hub")
"""Sources of the general text where none is named: the first that the run neither trains nor evaluates on."""
NONE = "none"
"""Value of `data.general` that leaves the general text out."""
MOST_CHARACTERS = 100_000
"""Characters after which no more rows are taken; a text that exceeds them is cut off."""
LENGTH = 128
"""Most tokens of a row of the general text."""


def load_general(examples: Examples, *, plain_text: bool) -> Examples | None:
    """Read the general text that the settings of `examples` name, or the default one.

    Rows whose inputs are those of a training or an evaluation row are left out.

    Args:
        examples: Rows of the run.
        plain_text: Whether texts without labels are rows of the task. Then there is a default, and only the column with
            the text is read.

    Returns:
        Rows that are training and evaluation rows at once; None where there is no general text.

    Raises:
        UsageError: A named source cannot be read, is one of the run's other sources, or has no row of its own.
    """
    options = examples.config
    in_use = {*names_of(options.train), *names_of(options.eval)}
    names = names_of(options.general) or (_default(in_use) if plain_text else ())
    if not names or names == (NONE,):
        return None
    _refuse_in_use(names, in_use)
    config = _settings(options, names, plain_text=plain_text)
    rows = _own_rows(read_part(names, config, config.train_split).rows, config, examples)
    rows = sample(rows, options.general_limit, options.seed)
    if plain_text:
        rows = _first_characters(rows, config.text)
    return Examples(rows, rows, config, fingerprint(config, rows))


def _default(in_use: set[str]) -> tuple[str, ...]:
    return tuple(name for name in DEFAULTS if name not in in_use)[:1]


def _refuse_in_use(names: tuple[str, ...], in_use: set[str]) -> None:
    same = sorted(in_use.intersection(names))
    if same:
        raise UsageError(
            f"data.general: {listed(same)} is in data.train or data.eval too, and shows nothing that they do not show. "
            f"Name a text of another kind, or leave it out with `general: {NONE}`."
        )


def _settings(options: DataConfig, names: tuple[str, ...], *, plain_text: bool) -> DataConfig:
    config = options.model_copy(update={"train": names, "eval": None})
    if not plain_text:
        return config
    column = "text" if all(name.startswith("builtin:") for name in names) else options.text
    length = min(options.max_length, LENGTH)
    changes = {"text": column, "text_pair": None, "label": None, "label_first": False, "max_length": length}
    return config.model_copy(update=changes)


def _own_rows(rows: datasets.Dataset, config: DataConfig, examples: Examples) -> datasets.Dataset:
    """Return the rows that are neither training rows nor evaluation rows."""
    columns = examples.config.inputs[: len(config.inputs)]
    known = {digest(row, columns) for part in (examples.train, examples.eval) for row in part}
    own = [number for number, row in enumerate(rows) if digest(row, config.inputs) not in known]
    if not own:
        raise UsageError(
            f"data.general: every row of {listed(config.train)} is a training or an evaluation row too. Name a text of "
            f"another kind, or leave it out with `general: {NONE}`."
        )
    return rows.select(own)


def _first_characters(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return the first rows with `MOST_CHARACTERS` characters together."""
    texts, rest = [], MOST_CHARACTERS
    for text in map(str, rows[column]):
        texts.append(text[:rest])
        rest -= len(texts[-1])
        if rest <= 0:
            break
    return datasets.Dataset.from_dict({column: texts})
