"""Reads columns of texts, truncates them to a length, and counts the truncated rows."""

from dataclasses import dataclass
from typing import Any

import datasets

from hf_pe.errors import UsageError


def texts_of(rows: datasets.Dataset, column: str) -> list[str]:
    """Return the texts of a column; numbers are converted to text.

    Raises:
        UsageError: the column holds lists or dicts.
    """
    if not isinstance(rows.features[column], (datasets.Value, datasets.ClassLabel)):
        raise UsageError(
            f"Data: expected a text in each row of column '{column}', got {str(rows[0][column])[:80]}. Only the task "
            "token_classification reads lists of words; join them to texts for other tasks."
        )
    return [str(text) for text in rows[column]]


@dataclass
class Truncation:
    """Tokenizes texts, truncates them, and counts how many were too long.

    Attributes:
        tokenizer: of the model.
        max_length: most tokens per row.
        rows: number of rows that have been truncated so far.
    """

    tokenizer: Any
    max_length: int
    rows: int = 0

    def __call__(self, *texts: Any, target: bool = False, **options: Any) -> Any:
        """Return the tokenizer's output for texts or pairs of texts.

        Args:
            texts: one list of texts, or two lists for pairs.
            target: tokenize the texts as targets of a sequence-to-sequence model.
            options: of the tokenizer.
        """
        tokens = self._tokens(texts, target, truncation=True, max_length=self.max_length, **options)
        full = [number for number, ids in enumerate(tokens["input_ids"]) if len(ids) >= self.max_length]
        if full:
            untruncated = self._tokens([[text[n] for n in full] for text in texts], target, truncation=False, **options)
            self.rows += sum(len(ids) > self.max_length for ids in untruncated["input_ids"])
        return tokens

    def _tokens(self, texts: Any, target: bool, **options: Any) -> Any:
        if target:
            return self.tokenizer(text_target=texts[0], verbose=False, **options)
        return self.tokenizer(*texts, verbose=False, **options)
