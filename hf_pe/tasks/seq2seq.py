"""Sequence to sequence: a text that follows from a text."""

from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import DataCollatorForSeq2Seq, PretrainedConfig, PreTrainedModel

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.tasks.base import Batch, Judged, TaskData, model_inputs
from hf_pe.tasks.likelihood import judged_tokens, unigram_perplexity
from hf_pe.tasks.tokens import unknown_token_warnings


@dataclass(frozen=True)
class Seq2Seq:
    """`data.text` is what is read, `data.label` what is to be written."""

    name: str = "seq2seq"
    auto_class: str = "AutoModelForSeq2SeqLM"
    pipeline_tag: str = "text2text-generation"
    metric: str = "perplexity"
    higher_is_better: bool = False

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Tokenize both texts."""
        options = examples.config
        if not options.label:
            raise UsageError("data.label: expected the name of the column with the target texts, got nothing.")
        label = options.label

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            limits = {"truncation": True, "max_length": options.max_length}
            found = dict(processor([str(t) for t in rows[options.text]], **limits))
            targets = processor(text_target=[str(t) for t in rows[label]], **limits)["input_ids"]
            end = processor.eos_token_id
            closed = [ids if end is None or ids[-1:] == [end] else [*ids, end] for ids in targets]
            return datasets.Dataset.from_dict(found | {"labels": closed})

        train, evaluation = tokens(examples.train), tokens(examples.eval)
        warnings = unknown_token_warnings(processor, train, evaluation, "input_ids", "labels")
        collate = Targets(processor, config)
        return TaskData(self, processor, train, evaluation, collate, examples, warnings=warnings)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Logits [batch, tokens, vocabulary] of the target, their mask, the task loss; on request the decoder's hidden
        states."""
        out = model(**model_inputs(batch), output_hidden_states=hidden, use_cache=False)
        labels = batch["labels"]
        loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1).float(), labels.flatten())
        found = {"logits": out.logits, "mask": labels != -100, "loss": loss}
        return found | ({"hidden_states": out.decoder_hidden_states, "tokens": labels != -100} if hidden else {})

    def describe(self, data: TaskData) -> str:
        """Says what is read and counted."""
        return (
            "`perplexity` and `accuracy` are over the tokens of the held-out targets, each read after the right ones "
            "before it."
        )

    def chance(self, model: PreTrainedModel, data: TaskData) -> float:
        """Return the perplexity of targets by the frequency of tokens alone."""
        return unigram_perplexity(data.calibration["labels"], data.eval["labels"])

    def judge(self, model: PreTrainedModel, data: TaskData) -> Judged:
        """Of each row negative log-likelihood, right tokens and number of tokens of the target."""
        return judged_tokens(self, model, data)


@dataclass(frozen=True)
class Targets:
    """Makes a batch: pads both sides, and shifts the target for the decoder to read."""

    processor: Any
    config: PretrainedConfig

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Model inputs with decoder_input_ids, and labels [batch, tokens]."""
        batch: Batch = dict(DataCollatorForSeq2Seq(self.processor, label_pad_token_id=-100)(rows))
        first = self.config.decoder_start_token_id
        first = self.config.pad_token_id if first is None else first
        before = batch["labels"].roll(1, 1)
        before[:, 0] = first
        return batch | {"decoder_input_ids": before.masked_fill(before == -100, self.config.pad_token_id or 0)}
