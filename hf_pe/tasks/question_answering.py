"""Defines extractive question answering: a model finds the first and the last token of the answer in a text."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.modes import evaluating
from hf_pe.tasks.base import Task, TaskData
from hf_pe.tasks.batch import POSSIBLE, Batch, label_loss, model_inputs, on_device
from hf_pe.tasks.evaluation import EvalResult
from hf_pe.tasks.texts import texts_of
from hf_pe.tasks.tokens import require_offsets, unknown_token_warnings

NOWHERE = -1e4
"""The logit of tokens that an answer cannot begin or end with: those of the question, and padding."""
MAX_ANSWER_TOKENS = 30
"""Most tokens of an answer."""


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Find the answer to a question in a text.

    `data.text` is the question, `data.text_pair` the text, `data.label` the answers as SQuAD has them:
    {"text": [...], "answer_start": [...]}.

    A long text is split into several rows that overlap. The label of a row without the answer is the first token
    (Devlin et al. 2019, arXiv:1810.04805, section 4.2).

    Example:
        >>> QuestionAnswering().uncacheable
        'its classes are the tokens of each row'
    """

    name = "question_answering"
    auto_class = "AutoModelForQuestionAnswering"
    architectures = ("ForQuestionAnswering",)
    pipeline_tag = "question-answering"
    metric = "f1"
    outputs = "logits of the first and the last token of the answer"
    needs_label = True
    uncacheable = "its classes are the tokens of each row"

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Tokenize questions and texts, and determine the first and last token of each answer.

        Raises:
            UsageError: a column is not named, answers have another form than SQuAD's, or the tokenizer returns no
                offsets.
        """
        options = examples.config
        if not options.text_pair or not options.label:
            raise UsageError("data: expected text (the question), text_pair (the text) and label (the answers).")
        context, label = options.text_pair, options.label
        require_offsets(processor)

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            answers = [_texts_and_starts(of_row) for of_row in rows[label]]
            inputs = processor(
                texts_of(rows, options.text),
                texts_of(rows, context),
                truncation="only_second",
                max_length=options.max_length,
                stride=options.max_length // 4,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            labels, offsets = [], []
            examples_of_rows = inputs.pop("overflow_to_sample_mapping")
            for row, spans in enumerate(inputs.pop("offset_mapping")):
                sequence = inputs.sequence_ids(row)
                in_text = [list(span) if sequence[i] == 1 else [-1, -1] for i, span in enumerate(spans)]
                labels.append(_first_and_last(in_text, *answers[examples_of_rows[row]]))
                offsets.append(in_text)
            columns = {"labels": labels, "offsets": offsets, "example": list(examples_of_rows)}
            return datasets.Dataset.from_dict(dict(inputs) | columns)

        train, evaluation = tokens(examples.train), tokens(examples.eval)
        warnings = unknown_token_warnings(processor, train, evaluation)
        return TaskData(self, processor, train, evaluation, AnswerCollator(processor), examples, warnings=warnings)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return logits of the first and the last token [batch, 2, tokens], the task loss; on request hidden states."""
        out = model(**model_inputs(batch), output_hidden_states=hidden)
        logits = torch.stack([out.start_logits, out.end_logits], 1)
        logits = logits.masked_fill(~batch[POSSIBLE].bool()[:, None], NOWHERE)
        signals = {"logits": logits, "loss": label_loss(logits, batch["labels"])}
        return signals | ({"hidden_states": out.hidden_states} if hidden else {})

    def describe(self, data: TaskData) -> str:
        """Return a sentence on how answers are compared."""
        return "`exact_match` and `f1` over words, as SQuAD counts them, are over the evaluation questions."

    def chance(self, model: PreTrainedModel, data: TaskData) -> float:
        """Return the better F1 of two guesses: random logits, and "no answer" for every question."""
        generator = torch.Generator().manual_seed(0)
        logits = (torch.randn(2, len(row), generator=generator) for row in data.eval["offsets"])
        unanswered = [not _texts_and_starts(of_row)[0] for of_row in data.examples.eval[data.examples.config.label]]
        return max(_evaluated(logits, data).scores()["f1"], sum(unanswered) / len(unanswered))

    def evaluate(self, model: PreTrainedModel, data: TaskData) -> EvalResult:
        """Compute F1 and exact match of each question."""

        def logits() -> Iterator[torch.Tensor]:
            for batch in data.batches(data.eval):
                yield from self.signals(model, on_device(model, batch))["logits"].float().cpu()

        with evaluating(model), torch.no_grad():
            return _evaluated(logits(), data)

    def rows_of_examples(self, data: TaskData, numbers: Sequence[int]) -> list[int]:
        """Return the indices of all rows that the texts of these examples were split into."""
        examples = set(numbers)
        return [row for row, example in enumerate(data.train["example"]) if example in examples]


def _evaluated(logits: Iterable[torch.Tensor], data: TaskData) -> EvalResult:
    """Compute F1 and exact match of each question from the logits [2, tokens] of each evaluation row, in order."""
    best: dict[int, tuple[float, str]] = {}
    options = data.examples.config
    assert options.text_pair and options.label, "prepare refuses their absence"
    contexts = data.examples.eval[options.text_pair]
    for row, (start, end) in zip(data.eval, logits, strict=True):
        score, span = _best_span(start, end, row["offsets"])
        text = contexts[row["example"]][span[0] : span[1]] if span else ""
        if row["example"] not in best or score > best[row["example"]][0]:
            best[row["example"]] = (score, text)
    gold = [_texts_and_starts(of_row)[0] or [""] for of_row in data.examples.eval[options.label]]
    predicted = [best[number][1] for number in range(len(gold))]
    pairs = list(zip(predicted, gold, strict=True))
    f1 = [max(_word_f1(text, right) for right in texts) for text, texts in pairs]
    exact = [float(max(_normalized(text) == _normalized(right) for right in texts)) for text, texts in pairs]
    return EvalResult({"f1": np.asarray(f1), "exact_match": np.asarray(exact)}, _means)


@dataclass(frozen=True)
class AnswerCollator:
    """Makes a batch: pads the rows, and marks the tokens that an answer may begin or end with."""

    processor: Any

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return model inputs, labels [batch, 2] and `possible` [batch, tokens]."""
        plain = [{k: v for k, v in row.items() if k not in ("offsets", "example")} for row in rows]
        batch: Batch = dict(self.processor.pad(plain, padding_side="right", return_tensors="pt"))
        possible = torch.zeros_like(batch["input_ids"])
        for number, row in enumerate(rows):
            possible[number, : len(row["offsets"])] = torch.tensor([span[0] >= 0 for span in row["offsets"]])
        possible[:, 0] = 1  # stands for "no answer"
        return batch | {POSSIBLE: possible}


def _first_and_last(offsets: list[list[int]], texts: list[str], starts: list[int]) -> list[int]:
    """Return the first and the last token of the first answer; [0, 0] if the row does not contain all of it.

    Args:
        offsets: first character, and the one behind the last, of each token in the text; -1 for other tokens.
        texts: of the answers.
        starts: first character of each answer.
    """
    if not texts:
        return [0, 0]
    first, last = starts[0], starts[0] + len(texts[0])
    tokens = [i for i, (start, end) in enumerate(offsets) if start >= 0 and start < last and end > first]
    complete = tokens and offsets[tokens[0]][0] <= first and offsets[tokens[-1]][1] >= last
    return [tokens[0], tokens[-1]] if complete else [0, 0]


def _best_span(
    start: torch.Tensor, end: torch.Tensor, offsets: list[list[int]]
) -> tuple[float, tuple[int, int] | None]:
    """Return how much the logits of the most likely answer exceed those of "no answer", and its characters in the text.

    The characters are None if "no answer" is more likely.
    """
    count = len(offsets)
    scores = start[:count, None] + end[None, :count]
    scores = scores.triu().tril(MAX_ANSWER_TOKENS - 1)
    allowed = torch.ones_like(scores).triu().tril(MAX_ANSWER_TOKENS - 1).bool()
    in_text = torch.tensor([span[0] >= 0 for span in offsets])
    scores = scores.masked_fill(~(allowed & in_text[:, None] & in_text[None]), -1e9)
    best = int(scores.argmax())
    first, last = divmod(best, count)
    margin = float(scores.flatten()[best] - (start[0] + end[0]))
    return margin, (offsets[first][0], offsets[last][1]) if margin > 0 else None


def _texts_and_starts(answers: Any) -> tuple[list[str], list[int]]:
    """Return the texts of the answers of a row, and the character at which each begins.

    Raises:
        UsageError: the answers have another form than SQuAD's.
    """
    try:
        return [str(text) for text in answers["text"]], [int(start) for start in answers["answer_start"]]
    except (TypeError, KeyError, IndexError) as error:
        raise UsageError(
            f'Data: expected answers as {{"text": [...], "answer_start": [...]}}; got {str(answers)[:80]!r}.'
        ) from error


def _normalized(text: str) -> str:
    """Return a text without case, punctuation, articles and doubled spaces.

    As SQuAD's evaluation does (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1).
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _word_f1(predicted: str, right: str) -> float:
    predicted_words, right_words = _normalized(predicted).split(), _normalized(right).split()
    if not predicted_words or not right_words:
        return float(predicted_words == right_words)
    shared = sum((Counter(predicted_words) & Counter(right_words)).values())
    return 2 * shared / (len(predicted_words) + len(right_words))


def _means(columns: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in columns.items()}
