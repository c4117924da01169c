"""Defines the task of sentence embeddings: a model maps texts to vectors, which are compared by their cosine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import datasets
import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import DataCollatorWithPadding, PretrainedConfig, PreTrainedModel

from hf_pe.checkpoints.sentence_modules import SentenceModules
from hf_pe.checkpoints.sentence_source import is_sentence_transformer, sentence_modules
from hf_pe.checkpoints.source import Source
from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.modes import evaluating
from hf_pe.tasks.base import Task, TaskData
from hf_pe.tasks.batch import Batch, model_inputs, on_device
from hf_pe.tasks.evaluation import EvalResult, thirds
from hf_pe.tasks.texts import Truncation, texts_of
from hf_pe.tasks.tokens import unknown_token_warnings


@dataclass(frozen=True)
class Embedding(Task):
    """Embed texts as sentence-transformers does: mean or CLS pooling, then the dense layers that the model has.

    If the data have a score per pair of texts, the metric is the Spearman correlation of the cosine similarities with
    the scores. If they have none, it is the correlation with the teacher's similarities, over pairs of held-out
    sentences: each sentence with the next one and with four random ones.

    Example:
        >>> Embedding(SentenceModules(pooling="cls")).modules.pooling
        'cls'
    """

    name = "embedding"
    auto_class = "AutoModel"
    pipeline_tag = "sentence-similarity"
    metric = "spearman"
    hub_metrics: ClassVar[Mapping[str, str]] = {"spearman": "spearmanr"}
    outputs = "embeddings"
    reads_plain_text = True

    modules: SentenceModules = field(default_factory=SentenceModules)
    _of_teachers: WeakKeyDictionary[PreTrainedModel, dict[str, np.ndarray[Any, Any]]] = field(
        default_factory=WeakKeyDictionary, init=False, compare=False, repr=False
    )
    """Caches the embeddings of each teacher by the fingerprint of the rows they were computed from."""

    @classmethod
    def recognizes(cls, source: Source) -> bool:
        """Return whether sentence-transformers wrote the checkpoint."""
        return is_sentence_transformer(source)

    @classmethod
    def of_checkpoint(cls, source: Source) -> "Embedding":
        """Return the task with the pooling, the dense layers and the prompt of the checkpoint."""
        return cls(sentence_modules(source))

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Tokenize the texts; scores of pairs are read for evaluation only.

        Raises:
            UsageError: scores are named but no second text, or a score is no number.
        """
        options = examples.config
        if options.label and not options.text_pair:
            raise UsageError("data.label is a score for pairs: name the second text's column in data.text_pair.")
        columns = [c for c in (options.text, options.text_pair) if c]
        if options.label:
            _scores(examples.eval, options.label)
        tokenize = self._truncation(processor, options.max_length)

        def tokens(rows: datasets.Dataset, names: list[str]) -> datasets.Dataset:
            texts = [self.modules.text(text) for name in names for text in texts_of(rows, name)]
            return datasets.Dataset.from_dict(dict(tokenize(texts)))

        train, evaluation = tokens(examples.train, columns), tokens(examples.eval, columns)
        warnings = self.modules.warnings + unknown_token_warnings(processor, train, evaluation)
        collate, cut = DataCollatorWithPadding(processor), tokenize.rows
        return TaskData(self, processor, train, evaluation, collate, examples, warnings=warnings, truncated=cut)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return embeddings [batch, width] and, on request, hidden states [batch, tokens, width]."""
        out = model(**model_inputs(batch), output_hidden_states=hidden)
        mask = batch["attention_mask"]
        last = out.last_hidden_state
        if self.modules.pooling == "cls":
            pooled = last[torch.arange(len(last), device=last.device), mask.int().argmax(1)]  # padding may come first
        else:
            pooled = (last * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        embeddings = torch.nn.functional.normalize(self.modules.apply_head(pooled), dim=-1)
        signals = {"embeddings": embeddings, "mask": mask}
        return signals | ({"hidden_states": out.hidden_states} if hidden else {})

    def tokenized(self, texts: Sequence[Any], processor: Any, max_length: int) -> dict[str, Any]:
        """Return the tokenizer's output for texts with the model's prompt before each."""
        return dict(self._truncation(processor, max_length)([self.modules.text(text) for text in texts]))

    def _truncation(self, processor: Any, max_length: int) -> Truncation:
        return Truncation(processor, min(max_length, self.modules.max_tokens or max_length))

    @torch.no_grad()
    def encode(self, model: PreTrainedModel, processor: Any, texts: Sequence[str]) -> torch.Tensor:
        """Return embeddings [texts, width] of a few short texts, on the CPU."""
        batch = processor.pad(self.tokenized(texts, processor, 128), return_tensors="pt")
        embeddings: torch.Tensor = self.signals(model, on_device(model, batch))["embeddings"]
        return embeddings.float().cpu()

    def embed(self, model: PreTrainedModel, data: TaskData, rows: datasets.Dataset) -> np.ndarray[Any, Any]:
        """Return the embeddings of tokenized `rows` [len(rows), width], computed in order of length."""
        order = np.argsort([-len(ids) for ids in rows["input_ids"]], kind="stable")
        with evaluating(model), torch.no_grad():
            parts = [
                self.signals(model, on_device(model, batch))["embeddings"].float().cpu()
                for batch in data.batches(rows.select(order))
            ]
        return torch.cat(parts).numpy()[np.argsort(order)]

    def _of_teacher(self, data: TaskData) -> np.ndarray[Any, Any]:
        assert data.teacher is not None
        by_rows, rows = self._of_teachers.setdefault(data.teacher, {}), data.eval._fingerprint
        if rows not in by_rows:
            by_rows[rows] = self.embed(data.teacher, data, data.eval)
        return by_rows[rows]

    def describe(self, data: TaskData) -> str:
        """Return a sentence on which of the two correlations `spearman` is, and on the prompt."""
        prompt = f" Every text begins with the model's prompt `{self.modules.prompt}`." if self.modules.prompt else ""
        if data.examples.config.label:
            return f"`spearman` is the rank correlation of cosine similarities with the scores of the data.{prompt}"
        return (
            "`spearman` is the rank correlation of cosine similarities with those of the original, over pairs of "
            f"held-out sentences (the original has 1 by definition).{prompt}"
        )

    def chance(self, model: PreTrainedModel, data: TaskData) -> float | None:
        """Return the correlation that random scores exceed with a probability of 5%; None if the data have no scores.

        The rank correlation of n unrelated pairs is about normal with a standard deviation of 1 / sqrt(n - 1).
        """
        pairs = len(data.examples.eval)
        return 1.645 / max(pairs - 1, 1) ** 0.5 if data.examples.config.label else None

    def evaluate(self, model: PreTrainedModel, data: TaskData) -> EvalResult:
        """Compute cosine similarities: of each pair beside its score, or of each sentence beside the teacher's.

        The slices are thirds by length and by the score or the teacher's similarity.
        """
        embeddings = self.embed(model, data, data.eval)
        options = data.examples.config
        lengths = np.asarray([len(ids) for ids in data.eval["input_ids"]])
        if options.label:
            half = len(embeddings) // 2
            target = _scores(data.examples.eval, options.label)
            similarity = (embeddings[:half] * embeddings[half:]).sum(1)
            lengths = lengths[:half] + lengths[half:]
        else:
            teacher = embeddings if data.teacher in (None, model) else self._of_teacher(data)
            partners = sentence_pairs(len(embeddings), options.seed)
            similarity, target = ((vectors[:, None] * vectors[partners]).sum(2) for vectors in (embeddings, teacher))
        slices = thirds(lengths, "length") | thirds(target.reshape(len(target), -1).mean(1), "similarity")
        return EvalResult({"similarity": similarity, "target": target}, _spearman, slices)

    def rows_of_examples(self, data: TaskData, numbers: Sequence[int]) -> list[int]:
        """Return the indices of the texts of these examples: all first texts come before all second ones."""
        count = len(data.examples.train)
        return [start + number for start in range(0, len(data.train), count) for number in numbers]


def sentence_pairs(count: int, seed: int) -> np.ndarray[Any, Any]:
    """Return the indices [count, 5] of five sentences to compare each with: the next one and four random ones."""
    draw = np.random.default_rng(seed)
    indices = np.arange(count)[:, None]
    return (indices + np.hstack([np.ones_like(indices), draw.integers(1, max(count, 2), (count, 4))])) % count


def _scores(rows: datasets.Dataset, column: str) -> np.ndarray[Any, Any]:
    """Return the scores of pairs [rows].

    Raises:
        UsageError: a score is no number.
    """
    try:
        return np.asarray(rows[column], dtype=float)
    except (TypeError, ValueError) as error:
        raise UsageError(f"data.label: expected a score for each pair in column '{column}': {error}.") from error


def _spearman(columns: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    return {"spearman": float(spearmanr(columns["similarity"].ravel(), columns["target"].ravel()).statistic)}
