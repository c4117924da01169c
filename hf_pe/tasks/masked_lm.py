"""Masked language modelling: a model guesses tokens that are hidden."""

from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import DataCollatorForLanguageModeling, PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.tasks.base import Task, TaskData
from hf_pe.tasks.batch import Batch, label_loss, model_inputs
from hf_pe.tasks.evaluation import EvalResult
from hf_pe.tasks.likelihood import scored_tokens, unigram_perplexity
from hf_pe.tasks.texts import Truncation, texts_of
from hf_pe.tasks.tokens import unknown_token_warnings


@dataclass(frozen=True)
class MaskedLM(Task):
    """Guess tokens that are hidden (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    The fraction `share` of the tokens is hidden: other ones in each training batch, always the same ones in the
    evaluation rows.

    Example:
        >>> MaskedLM(share=0.3).describe(None)
        '`perplexity` and `accuracy` are over 30% of the tokens of held-out rows, hidden once.'
    """

    name = "masked_lm"
    auto_class = "AutoModelForMaskedLM"
    architectures = ("ForMaskedLM",)
    pipeline_tag = "fill-mask"
    metric = "perplexity"
    higher_is_better = False
    outputs = "logits of each hidden token"
    uncacheable = "it hides other tokens each time"

    share: float = 0.15

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Tokenize; hide tokens of the evaluation rows.

        Raises:
            UsageError: the tokenizer has no mask token.
        """
        if getattr(processor, "mask_token", None) is None:
            raise UsageError("task: masked_lm needs a tokenizer with a mask token; this one has none.")
        options = examples.config

        tokenize = Truncation(processor, options.max_length)

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            return datasets.Dataset.from_dict(dict(tokenize(texts_of(rows, options.text))))

        hide = DataCollatorForLanguageModeling(processor, mlm=True, mlm_probability=self.share)
        fixed = DataCollatorForLanguageModeling(processor, mlm=True, mlm_probability=self.share, seed=options.seed)
        held = []
        for row in tokens(examples.eval):
            hidden = fixed([dict(row)])
            one = {key: hidden[key][0].tolist() for key in ("input_ids", "labels")}
            if all(label == -100 for label in one["labels"]):
                _hide_one(one, processor)
            held.append(dict(row) | one)
        collate = Hiding(hide, processor)
        train, evaluation = tokens(examples.train), datasets.Dataset.from_list(held)
        warnings = unknown_token_warnings(processor, train, evaluation)
        return TaskData(
            self, processor, train, evaluation, collate, examples, warnings=warnings, truncated=tokenize.rows
        )

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return logits [batch, tokens, vocabulary], which tokens are hidden, the loss; on request hidden states."""
        out = model(**model_inputs(batch), output_hidden_states=hidden)
        labels = batch["labels"]
        found = {"logits": out.logits, "loss": label_loss(out.logits, labels), "mask": labels != -100}
        return found | ({"hidden_states": out.hidden_states} if hidden else {})

    def describe(self, data: TaskData) -> str:
        """Return how many tokens are hidden."""
        return f"`perplexity` and `accuracy` are over {self.share:.0%} of the tokens of held-out rows, hidden once."

    def chance(self, model: PreTrainedModel, data: TaskData) -> float:
        """Return the perplexity of guesses by the frequency of tokens alone."""
        special = set(data.processor.all_special_ids)
        known = [[token for token in ids if token not in special] for ids in data.calibration["input_ids"]]
        return unigram_perplexity(known, data.eval["labels"])

    def evaluate(self, model: PreTrainedModel, data: TaskData) -> EvalResult:
        """Return of each row the negative log-likelihood, the right guesses and the number of hidden tokens."""
        return scored_tokens(self, model, data)


def _hide_one(row: dict[str, list[int]], tokenizer: Any) -> None:
    """Hide the middle one of a row's tokens that are not special, if there is one, so that every row says something."""
    special = tokenizer.get_special_tokens_mask(row["input_ids"], already_has_special_tokens=True)
    places = [place for place, mark in enumerate(special) if not mark]
    if places:
        place = places[len(places) // 2]
        row["labels"][place], row["input_ids"][place] = row["input_ids"][place], tokenizer.mask_token_id


@dataclass(frozen=True)
class Hiding:
    """Hides tokens of rows that have no labels yet; pads those that have."""

    hide: DataCollatorForLanguageModeling
    processor: Any

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Model inputs and labels [batch, tokens], -100 where nothing was hidden."""
        if "labels" not in rows[0]:
            return dict(self.hide(rows))
        plain = [{k: v for k, v in row.items() if k != "labels"} for row in rows]
        batch: Batch = dict(self.processor.pad(plain, padding_side="right", return_tensors="pt"))
        labels = torch.full_like(batch["input_ids"], -100)
        for number, row in enumerate(rows):
            labels[number, : len(row["labels"])] = torch.tensor(row["labels"])
        return batch | {"labels": labels}
