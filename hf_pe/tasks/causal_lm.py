"""Defines causal language modelling: a model predicts the next token of packed texts."""

from dataclasses import dataclass, replace
from typing import Any

import datasets
import torch
from transformers import PretrainedConfig, PreTrainedModel, default_data_collator

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.tasks.base import HeldOut, Task, TaskData, drawn
from hf_pe.tasks.batch import Batch, label_loss, model_inputs
from hf_pe.tasks.blocks import token_stream
from hf_pe.tasks.evaluation import EvalResult
from hf_pe.tasks.likelihood import perplexity, scored_tokens, unigram_perplexity
from hf_pe.tasks.texts import texts_of
from hf_pe.tasks.tokens import added_tokens, unknown_token_warnings


@dataclass(frozen=True)
class CausalLM(Task):
    """Predict the next token of texts that are packed into blocks of `data.max_length` tokens.

    Each block begins with the special tokens that the tokenizer puts before a text (the BOS of Llama and Gemma),
    because a model that was trained with them predicts badly without. They count towards the length and are never
    predicted. Texts are joined by line breaks, or end with the tokenizer's EOS if it adds one.

    Example:
        >>> labels = torch.tensor([[-100, 7, 8, 9]])
        >>> positions, next_tokens = CausalLM().predicted({"input_ids": labels, "labels": labels})
        >>> positions.tolist(), next_tokens.tolist()
        ([[True, True, True, False]], [7, 8, 9])
    """

    name = "causal_lm"
    auto_class = "AutoModelForCausalLM"
    architectures = ("ForCausalLM", "LMHeadModel")
    pipeline_tag = "text-generation"
    metric = "perplexity"
    higher_is_better = False
    outputs = "logits of each token"
    predicts_tokens = True
    reads_plain_text = True

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Tokenize the texts and pack them into blocks; a rest shorter than a block is dropped.

        Raises:
            UsageError: the texts do not fill one block.
        """
        length = examples.config.max_length

        def packed(rows: datasets.Dataset, what: str) -> datasets.Dataset:
            stream = token_stream(texts_of(rows, examples.config.text), processor)
            blocks = [{"input_ids": ids, "labels": labels} for ids, labels in stream.blocks(length)]
            if not blocks:
                raise UsageError(
                    f"Data: the {what} texts make {len(stream.ids)} tokens, less than one block of "
                    f"data.max_length={length}."
                )
            return datasets.Dataset.from_list(blocks)

        train, evaluation = packed(examples.train, "training"), packed(examples.eval, "evaluation")
        warnings = unknown_token_warnings(processor, train, evaluation)
        return TaskData(self, processor, train, evaluation, default_data_collator, examples, warnings=warnings)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return logits of the next token [batch, tokens - 1, vocabulary], their mask, and the task loss."""
        out = model(**model_inputs(batch), output_hidden_states=hidden, use_cache=False)
        logits, labels = out.logits[:, :-1], batch["labels"][:, 1:]
        signals = {"logits": logits, "mask": labels != -100, "loss": label_loss(logits, labels)}
        return signals | ({"hidden_states": out.hidden_states} if hidden else {})

    def predicted(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a mask [batch, tokens] of the positions that predict a token, and the ids of these tokens."""
        labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        mask = labels != -100
        return mask, labels[mask]

    def describe(self, data: TaskData) -> str:
        """Return a sentence with the length of the blocks and the special tokens in them."""
        options = data.examples.config
        added = added_tokens(data.processor, str(data.examples.train[options.text][0]))
        begin, end = (
            "".join(data.processor.convert_ids_to_tokens(list(part))) for part in (added.prefix, added.suffix)
        )
        return (
            f"`perplexity` is over held-out blocks of {options.max_length} tokens"
            + (f", each beginning with the tokenizer's `{begin}`, which is not predicted" if begin else "")
            + (f"; every text ends with `{end}`" if end else "")
            + "; lower is better."
        )

    def chance(self, model: PreTrainedModel, data: TaskData) -> float:
        """Return the perplexity of predicting every token by its frequency."""
        return unigram_perplexity(data.calibration["labels"], data.eval["labels"])

    def evaluate(self, model: PreTrainedModel, data: TaskData) -> EvalResult:
        """Compute the negative log-likelihood of each block; the perplexity is exp of the mean over all tokens."""
        return scored_tokens(self, model, data, 4, perplexity)

    def hold_out(self, data: TaskData, config: PretrainedConfig, fraction: float, most: int, seed: int) -> HeldOut:
        """Draw blocks at random, because a block has parts of several texts."""
        rows = drawn(len(data.train), fraction, most, seed)
        return HeldOut(tuple(rows), replace(data, eval=data.train.select(rows)), len(rows))
