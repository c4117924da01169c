"""Defines masked language modelling: a model predicts tokens that are masked."""

from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import DataCollatorForLanguageModeling, PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.tasks.base import Task, TaskData
from hf_pe.tasks.batch import Batch, token_label_signals
from hf_pe.tasks.evaluation import EvalResult
from hf_pe.tasks.likelihood import scored_tokens, unigram_perplexity
from hf_pe.tasks.texts import Truncation, texts_of
from hf_pe.tasks.tokens import unknown_token_warnings


@dataclass(frozen=True)
class MaskedLM(Task):
    """Predict tokens that are masked (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    The fraction `share` of the tokens is masked: drawn anew for each training batch, and once for the evaluation rows.

    Example:
        >>> MaskedLM(share=0.3).describe(None)
        '`perplexity` and `accuracy` are over 30% of the tokens of held-out rows, masked once.'
    """

    name = "masked_lm"
    auto_class = "AutoModelForMaskedLM"
    architectures = ("ForMaskedLM",)
    pipeline_tag = "fill-mask"
    metric = "perplexity"
    higher_is_better = False
    outputs = "logits of each masked token"
    reads_plain_text = True
    uncacheable = "it masks other tokens each time"

    share: float = 0.15

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Tokenize the texts, and mask tokens of the evaluation rows.

        Raises:
            UsageError: the tokenizer has no mask token.
        """
        if getattr(processor, "mask_token", None) is None:
            raise UsageError("task: masked_lm needs a tokenizer with a mask token; this one has none.")
        options = examples.config

        tokenize = Truncation(processor, options.max_length)

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            return datasets.Dataset.from_dict(dict(tokenize(texts_of(rows, options.text))))

        masking = DataCollatorForLanguageModeling(processor, mlm=True, mlm_probability=self.share)
        fixed = DataCollatorForLanguageModeling(processor, mlm=True, mlm_probability=self.share, seed=options.seed)
        masked_rows = []
        for row in tokens(examples.eval):
            batch = fixed([dict(row)])
            masked = {key: batch[key][0].tolist() for key in ("input_ids", "labels")}
            if all(label == -100 for label in masked["labels"]):
                _mask_one(masked, processor)
            masked_rows.append(dict(row) | masked)
        collate = MaskingCollator(masking, processor)
        train, evaluation = tokens(examples.train), datasets.Dataset.from_list(masked_rows)
        warnings = unknown_token_warnings(processor, train, evaluation)
        return TaskData(
            self, processor, train, evaluation, collate, examples, warnings=warnings, truncated=tokenize.rows
        )

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return logits [batch, tokens, vocabulary], which tokens are masked, the loss; on request hidden states."""
        return token_label_signals(model, batch, hidden=hidden)

    def describe(self, data: TaskData) -> str:
        """Return a sentence with the fraction of tokens that are masked."""
        return f"`perplexity` and `accuracy` are over {self.share:.0%} of the tokens of held-out rows, masked once."

    def chance(self, model: PreTrainedModel, data: TaskData) -> float:
        """Return the perplexity of predicting every token by its frequency."""
        special = set(data.processor.all_special_ids)
        training = [[token for token in ids if token not in special] for ids in data.calibration["input_ids"]]
        return unigram_perplexity(training, data.eval["labels"])

    def evaluate(self, model: PreTrainedModel, data: TaskData) -> EvalResult:
        """Compute the negative log-likelihood, right predictions and number of the masked tokens of each row."""
        return scored_tokens(self, model, data)


def _mask_one(row: dict[str, list[int]], tokenizer: Any) -> None:
    """Mask the middle one of the tokens that are not special, if there are any, so that the row is evaluated."""
    special = tokenizer.get_special_tokens_mask(row["input_ids"], already_has_special_tokens=True)
    ordinary = [index for index, mark in enumerate(special) if not mark]
    if ordinary:
        middle = ordinary[len(ordinary) // 2]
        row["labels"][middle], row["input_ids"][middle] = row["input_ids"][middle], tokenizer.mask_token_id


@dataclass(frozen=True)
class MaskingCollator:
    """Makes a batch: masks tokens of training rows, and pads evaluation rows, whose tokens are masked already."""

    masking: DataCollatorForLanguageModeling
    processor: Any

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return model inputs, and labels [batch, tokens] that are -100 where no token is masked."""
        if "labels" not in rows[0]:
            return dict(self.masking(rows))
        plain = [{k: v for k, v in row.items() if k != "labels"} for row in rows]
        batch: Batch = dict(self.processor.pad(plain, padding_side="right", return_tensors="pt"))
        labels = torch.full_like(batch["input_ids"], -100)
        for number, row in enumerate(rows):
            labels[number, : len(row["labels"])] = torch.tensor(row["labels"])
        return batch | {"labels": labels}
