"""Causal language modelling: packed blocks, perplexity."""

from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import PretrainedConfig, PreTrainedModel, default_data_collator

from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.tasks.base import Batch, Judged, TaskData, model_inputs
from hf_pe.tasks.likelihood import judged_tokens, perplexity


@dataclass(frozen=True)
class CausalLM:
    """Next-token prediction over the texts joined by line breaks and cut into blocks of `data.max_length` tokens."""

    name: str = "causal_lm"
    auto_class: str = "AutoModelForCausalLM"
    pipeline_tag: str = "text-generation"
    metric: str = "perplexity"
    higher_is_better: bool = False

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Join and tokenize the texts; a rest shorter than a block is dropped."""
        length = examples.config.max_length

        def blocks(rows: datasets.Dataset, what: str) -> datasets.Dataset:
            text = "\n".join(str(t) for t in rows[examples.config.text])
            ids = processor(text, verbose=False)["input_ids"]
            whole = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
            if not whole:
                raise UsageError(
                    f"Data: the {what} texts make {len(ids)} tokens, less than one block of data.max_length={length}."
                )
            return datasets.Dataset.from_dict({"input_ids": whole, "labels": whole})

        train, evaluation = blocks(examples.train, "training"), blocks(examples.eval, "evaluation")
        return TaskData(self, processor, train, evaluation, default_data_collator, examples)

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Logits that predict the next token [batch, tokens - 1, vocabulary], their mask, and the task loss."""
        out = model(**model_inputs(batch), output_hidden_states=hidden, use_cache=False)
        logits, labels = out.logits[:, :-1], batch["labels"][:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        found = {"logits": logits, "mask": labels != -100, "loss": loss}
        return found | ({"hidden_states": out.hidden_states} if hidden else {})

    def predicted(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Which positions [batch, tokens] predict something, and the next token's id for each of them, in order."""
        labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        mask = labels != -100
        return mask, labels[mask]

    def describe(self, examples: Examples) -> str:
        """Says how long the blocks are."""
        return f"`perplexity` is over held-out blocks of {examples.config.max_length} tokens; lower is better."

    def judge(self, model: PreTrainedModel, data: TaskData) -> Judged:
        """Negative log-likelihood of each block's tokens; perplexity is exp of the mean over all of them."""
        return judged_tokens(self, model, data, 4, perplexity)
