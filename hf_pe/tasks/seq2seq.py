"""Defines sequence to sequence: a model turns a text into another, such as its translation or summary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    PretrainedConfig,
    PreTrainedModel,
)

from hf_pe.anatomy import meta_model
from hf_pe.data import Examples
from hf_pe.errors import UsageError
from hf_pe.tasks.base import Task, TaskData
from hf_pe.tasks.batch import Batch, label_loss, model_inputs
from hf_pe.tasks.evaluation import EvalResult
from hf_pe.tasks.likelihood import scored_tokens, unigram_perplexity
from hf_pe.tasks.texts import Truncation, texts_of
from hf_pe.tasks.tokens import unknown_token_warnings


@dataclass(frozen=True)
class Seq2Seq(Task):
    """Write the text that follows from a text, such as its translation.

    `data.text` is what is read, `data.label` what is to be written.

    Example:
        >>> from transformers import WhisperConfig
        >>> config = WhisperConfig(architectures=["WhisperForConditionalGeneration"])
        >>> Seq2Seq.require_inferred(config)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hf_pe.errors.UsageError: WhisperForConditionalGeneration does not turn a text into a text: ...
    """

    name = "seq2seq"
    auto_class = "AutoModelForSeq2SeqLM"
    architectures = ("ForConditionalGeneration",)
    pipeline_tag = "text2text-generation"
    metric = "perplexity"
    higher_is_better = False
    outputs = "logits of each token of the target"
    needs_label = True

    @classmethod
    def require_inferred(cls, config: PretrainedConfig) -> None:
        """Refuse a model that writes text but reads sound or images, or has no decoder of its own.

        Raises:
            UsageError: the model is such a one; the message names causal_lm if its text model can be used alone.
        """
        model_class: Any = AutoModelForSeq2SeqLM._model_mapping.get(type(config), None)
        if model_class is not None and config.is_encoder_decoder and model_class.main_input_name == "input_ids":
            return
        class_name = (config.architectures or [""])[0]
        causal: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
        is_causal = causal is not None and causal.__name__ == class_name
        text = " For its text model alone: task: causal_lm." if is_causal else ""
        raise UsageError(
            f"{class_name} does not turn a text into a text: training and evaluation of models that read sound or "
            f"images and write text are not supported yet. hf-pe cut, hf-pe quantize and hf-pe export work.{text}"
        )

    def prepare(self, examples: Examples, processor: Any, config: PretrainedConfig) -> TaskData:
        """Tokenize the texts and their targets.

        Raises:
            UsageError: no column with targets is named, the tokenizer has no `tgt_lang` for them, or the config has no
                token that the decoder begins with.
        """
        options = examples.config
        if not options.label:
            raise UsageError("data.label: expected the name of the column with the target texts, got nothing.")
        label = options.label
        _require_language(processor)

        tokenize = Truncation(processor, options.max_length)

        def tokens(rows: datasets.Dataset) -> datasets.Dataset:
            inputs = dict(tokenize(texts_of(rows, options.text)))
            targets = tokenize(texts_of(rows, label), target=True)["input_ids"]
            end = processor.eos_token_id
            if end is not None:  # MBart's language comes behind the end
                targets = [ids if end in ids else [*ids[: options.max_length - 1], end] for ids in targets]
            return datasets.Dataset.from_dict(inputs | {"labels": targets})

        train, evaluation = tokens(examples.train), tokens(examples.eval)
        warnings = unknown_token_warnings(processor, train, evaluation, "input_ids", "labels")
        warnings += _prefix_warnings(examples.train[options.text], config)
        collate = Seq2SeqCollator(processor, decoder_inputs(config))
        collate([train[0]])  # raises now if the config has no token that the decoder begins with
        return TaskData(
            self, processor, train, evaluation, collate, examples, warnings=warnings, truncated=tokenize.rows
        )

    def signals(self, model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> dict[str, Any]:
        """Return logits [batch, tokens, vocabulary] of the target, their mask and the task loss.

        On request also the decoder's hidden states.
        """
        out = model(**model_inputs(batch), output_hidden_states=hidden, use_cache=False)
        labels = batch["labels"]
        signals = {"logits": out.logits, "mask": labels != -100, "loss": label_loss(out.logits, labels)}
        return signals | ({"hidden_states": out.decoder_hidden_states, "tokens": labels != -100} if hidden else {})

    def describe(self, data: TaskData) -> str:
        """Return a sentence on the tokens that the metrics are computed over."""
        return (
            "`perplexity` and `accuracy` are over the tokens of the held-out targets, each predicted from the right "
            "tokens before it."
        )

    def chance(self, model: PreTrainedModel, data: TaskData) -> float:
        """Return the perplexity of predicting every token by its frequency."""
        return unigram_perplexity(data.calibration["labels"], data.eval["labels"])

    def evaluate(self, model: PreTrainedModel, data: TaskData) -> EvalResult:
        """Compute the negative log-likelihood, right predictions and number of the target tokens of each row."""
        return scored_tokens(self, model, data)


@dataclass(frozen=True)
class Seq2SeqCollator:
    """Makes a batch: pads both sides, and shifts the target for the decoder to read."""

    processor: Any
    shift: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return model inputs with `decoder_input_ids`, and labels [batch, tokens]."""
        batch: Batch = dict(DataCollatorForSeq2Seq(self.processor, label_pad_token_id=-100)(rows))
        return batch | {"decoder_input_ids": self.shift(batch["labels"])}


def decoder_inputs(config: PretrainedConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that turns labels [batch, tokens] into the decoder's input ids as the model does.

    Most models shift the labels behind `decoder_start_token_id`; MBart moves the language from the end to the front.
    """
    model_class: Any = AutoModelForSeq2SeqLM._model_mapping.get(type(config), None)
    if not hasattr(model_class, "prepare_decoder_input_ids_from_labels"):
        return lambda labels: _shifted(labels, config)
    model: Any = meta_model(config, model_class)

    def shift(labels: torch.Tensor) -> torch.Tensor:
        try:
            input_ids: torch.Tensor = model.prepare_decoder_input_ids_from_labels(labels)
        except (ValueError, TypeError) as error:
            raise UsageError(
                "The model's config does not say what the decoder begins with: expected decoder_start_token_id and "
                f"pad_token_id in config.json ({error})."
            ) from error
        return input_ids

    return shift


def _shifted(labels: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    first = config.decoder_start_token_id
    first = config.pad_token_id if first is None else first
    input_ids = labels.roll(1, 1)
    input_ids[:, 0] = first
    return input_ids.masked_fill(input_ids == -100, config.pad_token_id or 0)


def _require_language(tokenizer: Any) -> None:
    """Refuse a tokenizer that marks texts with their language but would mark targets with that of the source.

    Raises:
        UsageError: `src_lang` is set, `tgt_lang` is not.
    """
    if getattr(tokenizer, "src_lang", None) and not getattr(tokenizer, "tgt_lang", None):
        raise UsageError(
            f"The tokenizer marks texts with their language and has src_lang '{tokenizer.src_lang}' but no tgt_lang, "
            "that of the targets. Save one that has both beside the model: "
            "AutoTokenizer.from_pretrained(MODEL, src_lang=..., tgt_lang=...).save_pretrained(MODEL)."
        )


def _prefix_warnings(texts: Sequence[Any], config: PretrainedConfig) -> tuple[str, ...]:
    """Return a warning if the model was trained with prefixes (T5: "summarize: ") that the texts do not have."""
    tasks = getattr(config, "task_specific_params", None) or {}
    from_config = [
        getattr(config, "prefix", None),
        *(task.get("prefix") for task in tasks.values() if isinstance(task, dict)),
    ]
    prefixes = [prefix for prefix in dict.fromkeys(from_config) if prefix and prefix.strip()]
    if not prefixes or any(str(text).startswith(tuple(prefixes)) for text in texts[:100]):
        return ()
    return (
        f"The model's config names prefixes of its tasks ({', '.join(f'`{prefix}`' for prefix in prefixes)}), and the "
        "texts begin with none of them. Put the right one before each text, as it was in training.",
    )
