"""How tasks read texts: columns that hold texts, cut off at a length, and how many were."""

from dataclasses import dataclass
from typing import Any

import datasets

from hf_pe.errors import UsageError


def texts_of(rows: datasets.Dataset, column: str) -> list[str]:
    """Return the texts of a column; numbers as they are printed.

    Raises:
        UsageError: it holds lists or dicts.
    """
    if not isinstance(rows.features[column], (datasets.Value, datasets.ClassLabel)):
        raise UsageError(
            f"Data: expected a text in each row of column '{column}', got {str(rows[0][column])[:80]}. Lists of words "
            "are read by the task token_classification alone; join them to texts for others."
        )
    return [str(text) for text in rows[column]]


@dataclass
class Truncation:
    """A tokenizer that cuts rows off at a length.

    Attributes:
        tokenizer: of the model.
        max_length: tokens that are kept.
        rows: how many rows had more so far.
    """

    tokenizer: Any
    max_length: int
    rows: int = 0

    def __call__(self, *texts: Any, target: bool = False, **options: Any) -> Any:
        """Tokenize texts, or pairs of texts, as the tokenizer does; with `target` as the text to be written."""
        found = self._tokens(texts, target, truncation=True, max_length=self.max_length, **options)
        full = [number for number, ids in enumerate(found["input_ids"]) if len(ids) >= self.max_length]
        if full:
            whole = self._tokens([[text[n] for n in full] for text in texts], target, truncation=False, **options)
            self.rows += sum(len(ids) > self.max_length for ids in whole["input_ids"])
        return found

    def _tokens(self, texts: Any, target: bool, **options: Any) -> Any:
        if target:
            return self.tokenizer(text_target=texts[0], verbose=False, **options)
        return self.tokenizer(*texts, verbose=False, **options)
