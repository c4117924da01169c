"""Defines the records of the data that a run trained and evaluated on: sources, rows, and how many were left out."""

from pydantic import Field

from hf_pe.plans import Frozen


class RowCounts(Frozen):
    """How many rows of all sources were read and left out, training and evaluation rows together."""

    read: int = 0
    empty: int = Field(0, description="left out: a column that the task uses is empty")
    duplicate: int = Field(0, description="left out: equal to another row")
    over_limit: int = Field(0, description="left out: beyond `data.limit` or `data.eval_limit`")
    overlapping: int = Field(0, description="evaluation rows whose inputs are those of a training row")
    truncated: int = Field(0, description="rows with more tokens than `data.max_length`, which were cut off")

    def plus(self, other: "RowCounts") -> "RowCounts":
        """Return the sums of both counts."""
        return RowCounts(**{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields})


class DataFacts(Frozen):
    """The data that a run trained and evaluated on."""

    train: tuple[str, ...]
    eval: tuple[str, ...] | None
    train_rows: int
    eval_rows: int
    fingerprint: str
    licenses: dict[str, str] = Field(default_factory=dict, description="source to the licence it states")
    counts: RowCounts = RowCounts()
    general: tuple[str, ...] = Field((), description="sources of the general text; empty without one")
    general_rows: int = 0
    general_fingerprint: str = ""
