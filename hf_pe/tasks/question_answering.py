"""Extractive question answering: a model says where in a text the answer stands."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
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
"""The logit of what cannot be the place: padding and the question."""
LONGEST = 30
"""Tokens of an answer."""


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Say where in a text the answer to a question stands.

    `data.text` is the question, `data.text_pair` the text, `data.label` the answers as SQuAD has them:
    {"text": [...], "answer_start": [...]}.

    Long texts make several rows that overlap; a row without the answer points at the first token (Devlin et al. 2019,
    arXiv:1810.04805, section 4.2).

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
        """Tokenize and find the first and last token of each answer.

        Raises:
            UsageError: a column is not named, answers have another form than SQuAD's, or the tokenizer cannot say where
                its tokens stand.
        """
        options = examples.config
        if not options.text_pair or not options.label:
            raise UsageError("data: expected text (the question), text_pair (the text) and label (the answers).")
        context, label = options.text_pair, options.label
        require_offsets(processor)

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            answers = [_answers(each) for each in rows[label]]
            found = processor(
                texts_of(rows, options.text),
                texts_of(rows, context),
                truncation="only_second",
                max_length=options.max_length,
                stride=options.max_length // 4,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            labels, offsets = [], []
            sample = found.pop("overflow_to_sample_mapping")
            for number, places in enumerate(found.pop("offset_mapping")):
                part = found.sequence_ids(number)
                inside = [list(place) if part[i] == 1 else [-1, -1] for i, place in enumerate(places)]
                labels.append(_place(inside, *answers[sample[number]]))
                offsets.append(inside)
            known = dict(found) | {"labels": labels}
            return datasets.Dataset.from_dict(known | {"offsets": offsets, "example": list(sample)})

        train, evaluation = tokens(examples.train), tokens(examples.eval)
        warnings = unknown_token_warnings(processor, train, evaluation)
        return TaskData(self, processor, train, evaluation, Places(processor), examples, warnings=warnings)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return logits of the first and the last token [batch, 2, tokens], the task loss; on request hidden states."""
        out = model(**model_inputs(batch), output_hidden_states=hidden)
        logits = torch.stack([out.start_logits, out.end_logits], 1)
        logits = logits.masked_fill(~batch[POSSIBLE].bool()[:, None], NOWHERE)
        found = {"logits": logits, "loss": label_loss(logits, batch["labels"])}
        return found | ({"hidden_states": out.hidden_states} if hidden else {})

    def describe(self, data: TaskData) -> str:
        """Return how answers are compared."""
        return "`exact_match` and `f1` over words, as SQuAD counts them, are over the evaluation questions."

    def chance(self, model: PreTrainedModel, data: TaskData) -> float:
        """Return the better F1 of two guesses: random places, and that no question has an answer."""
        draw = torch.Generator().manual_seed(0)
        places = (torch.randn(2, len(row), generator=draw) for row in data.eval["offsets"])
        unanswered = [not _answers(each)[0] for each in data.examples.eval[data.examples.config.label]]
        return max(_evaluated(places, data).scores()["f1"], sum(unanswered) / len(unanswered))

    def evaluate(self, model: PreTrainedModel, data: TaskData) -> EvalResult:
        """Return F1 and exact match of each question."""

        def logits() -> Iterator[torch.Tensor]:
            for batch in data.batches(data.eval):
                yield from self.signals(model, on_device(model, batch))["logits"].float().cpu()

        with evaluating(model), torch.no_grad():
            return _evaluated(logits(), data)


def _evaluated(logits: Iterable[torch.Tensor], data: TaskData) -> EvalResult:
    """Return F1 and exact match of each question, from the logits [2, tokens] of each evaluation row, in order."""
    best: dict[int, tuple[float, str]] = {}
    options = data.examples.config
    assert options.text_pair and options.label, "prepare refuses their absence"
    contexts = data.examples.eval[options.text_pair]
    for row, (start, end) in zip(data.eval, logits, strict=True):
        score, place = _best(start, end, row["offsets"])
        text = contexts[row["example"]][place[0] : place[1]] if place else ""
        if row["example"] not in best or score > best[row["example"]][0]:
            best[row["example"]] = (score, text)
    gold = [_answers(each)[0] or [""] for each in data.examples.eval[options.label]]
    said = [best[number][1] for number in range(len(gold))]
    f1 = [max(_overlap(one, other) for other in some) for one, some in zip(said, gold, strict=True)]
    exact = [float(max(_plain(one) == _plain(other) for other in some)) for one, some in zip(said, gold, strict=True)]
    return EvalResult({"f1": np.asarray(f1), "exact_match": np.asarray(exact)}, _means)


@dataclass(frozen=True)
class Places:
    """Makes a batch: pads, and says which tokens may be the place of an answer."""

    processor: Any

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Model inputs, labels [batch, 2] and `possible` [batch, tokens]."""
        plain = [{k: v for k, v in row.items() if k not in ("offsets", "example")} for row in rows]
        batch: Batch = dict(self.processor.pad(plain, padding_side="right", return_tensors="pt"))
        possible = torch.zeros_like(batch["input_ids"])
        for number, row in enumerate(rows):
            possible[number, : len(row["offsets"])] = torch.tensor([place[0] >= 0 for place in row["offsets"]])
        possible[:, 0] = 1  # nowhere
        return batch | {POSSIBLE: possible}


def _place(offsets: list[list[int]], texts: list[str], starts: list[int]) -> list[int]:
    """First and last token of the first answer; 0 and 0 where it is not in these tokens."""
    if not texts:
        return [0, 0]
    first, last = starts[0], starts[0] + len(texts[0])
    inside = [i for i, (start, end) in enumerate(offsets) if start >= 0 and start < last and end > first]
    whole = inside and offsets[inside[0]][0] <= first and offsets[inside[-1]][1] >= last
    return [inside[0], inside[-1]] if whole else [0, 0]


def _best(start: torch.Tensor, end: torch.Tensor, offsets: list[list[int]]) -> tuple[float, tuple[int, int] | None]:
    """The likeliest answer of one row: how much likelier than none, and its place in the text."""
    count = len(offsets)
    scores = start[:count, None] + end[None, :count]
    scores = scores.triu().tril(LONGEST - 1)
    allowed = torch.ones_like(scores).triu().tril(LONGEST - 1).bool()
    inside = torch.tensor([place[0] >= 0 for place in offsets])
    scores = scores.masked_fill(~(allowed & inside[:, None] & inside[None]), -1e9)
    place = int(scores.argmax())
    first, last = divmod(place, count)
    better = float(scores.flatten()[place] - (start[0] + end[0]))
    return better, (offsets[first][0], offsets[last][1]) if better > 0 else None


def _answers(found: Any) -> tuple[list[str], list[int]]:
    """Texts and where they begin.

    Raises:
        UsageError: the row has them in another form.
    """
    try:
        return [str(text) for text in found["text"]], [int(place) for place in found["answer_start"]]
    except (TypeError, KeyError, IndexError) as error:
        raise UsageError(
            f'Data: expected answers as {{"text": [...], "answer_start": [...]}}; got {str(found)[:80]!r}.'
        ) from error


def _plain(text: str) -> str:
    """Without case, punctuation, articles and doubled spaces (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _overlap(one: str, other: str) -> float:
    here, there = _plain(one).split(), _plain(other).split()
    if not here or not there:
        return float(here == there)
    both = sum((Counter(here) & Counter(there)).values())
    return 2 * both / (len(here) + len(there))


def _means(columns: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in columns.items()}
