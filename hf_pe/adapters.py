"""Reads adapters of PEFT and merges them into plain weights.

PEFT adds an adapter's update to a weight in float32 and rounds the sum once, to the dtype of the weight. Weights of 4
or 8 bits would be rounded to their coarse levels again, which can cost more than the adapter gained, so they are
dequantized first (`hf_pe.quantizers.registry.dequantized`).
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.errors import UsageError, explained, one_line, pass_on_memory_errors
from hf_pe.files.own_files import require_own_files
from hf_pe.surgery import rebuilt

PREFIX = "base_model.model."
"""The prefix that PEFT adds to the names of a model's tensors."""
COPIES = (".modules_to_save.", ".original_module.")
"""Parts of the names of tensors that an adapter holds a second time under another name."""


class Adapter(NamedTuple):
    """Hold an adapter as PEFT saves it.

    Attributes:
        settings: its adapter_config.json.
        state: its tensors by PEFT's names.
    """

    settings: PeftConfig
    state: dict[str, torch.Tensor]


def read_adapter(source: str) -> Adapter:
    """Read an adapter from a folder or the Hub.

    Raises:
        UsageError: the adapter cannot be read or merged, or a link leads out of its folder.
    """
    settings = adapter_settings(source)
    with _reading(source):
        state = load_peft_weights(source, device="cpu")
    # for resized embeddings PEFT also saves copies under names that it does not read
    return Adapter(settings, {n: t for n, t in state.items() if not any(copy in n for copy in COPIES)})


def adapter_settings(source: str) -> Any:
    """Return the adapter_config.json of a folder or a Hub id.

    Raises:
        UsageError: it cannot be read, or the adapter cannot be merged.
    """
    if Path(source).is_dir():
        require_own_files(Path(source))
    with _reading(source):
        settings: Any = PeftConfig.from_pretrained(source)
        if settings.peft_type is None:
            raise ValueError("its adapter_config.json names no peft_type")
    if settings.is_prompt_learning or getattr(settings, "layer_replication", None):
        kind = "learned prompts" if settings.is_prompt_learning else "repeated layers"
        raise UsageError(
            f"The adapter is of type {settings.peft_type.value} with {kind}, which cannot be merged into the model's "
            "weights. Expected one that PEFT can merge, such as LoRA or DoRA, or the model without an adapter."
        )
    return settings


def _reading(source: str) -> AbstractContextManager[None]:
    """Turn any error that PEFT raises while it reads an adapter into a message; see `errors.explained`."""
    return explained(
        lambda error: (
            f"The adapter {source} cannot be read ({one_line(error, 300)}). Expected adapter_config.json "
            "and adapter_model.safetensors as PEFT writes them: download them again, or save the adapter again."
        )
    )


def fit_config_(config: PretrainedConfig, model: PreTrainedModel, adapter: Adapter) -> None:
    """Change the config of a model into that of the model with the adapter merged.

    Args:
        config: changed in place.
        model: that the adapter was trained on, on any device.
        adapter: may contain an embedding with more rows, or separate weights for embeddings that the model ties.
    """
    rows = _rows(model, adapter)
    if rows is not None:
        config.get_text_config().vocab_size = rows
    if _unties(model, adapter):
        config.tie_word_embeddings = False


def merged(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Return the stock model with the adapter merged into its weights.

    Args:
        model: with plain weights; its modules become part of the result.
        adapter: of any kind that PEFT can merge.

    Raises:
        UsageError: the adapter does not fit the model.
    """
    rows = _rows(model, adapter)
    if rows not in (None, len(model.get_input_embeddings().weight)):  # type: ignore[arg-type]
        model.resize_token_embeddings(rows, mean_resizing=False)
    if _unties(model, adapter):
        model = _untied(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT says that it transposes Conv1D
            wrapped: Any = PeftModel(model, adapter.settings)
            loaded: Any = set_peft_model_state_dict(wrapped, adapter.state)
            _require_all(loaded, adapter.settings)
            plain: PreTrainedModel = wrapped.merge_and_unload()
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        pass_on_memory_errors(error)
        raise UsageError(f"The adapter does not fit {type(model).__name__}: {one_line(error)}") from error
    return plain.requires_grad_(True)


def _require_all(loaded: Any, settings: Any) -> None:
    """Refuse an adapter whose tensors are not those that its settings require.

    Args:
        loaded: result of `set_peft_model_state_dict`, with missing and unexpected names.
        settings: of the adapter.

    Raises:
        ValueError: a tensor is missing, or belongs to no module of the model.
    """
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[settings.peft_type]
    absent = [name for name in loaded.missing_keys if prefix in name]
    if absent:
        raise ValueError(f"it has no {absent[0].removeprefix(PREFIX)}, which its settings require")
    if loaded.unexpected_keys:
        raise ValueError(f"the model has no module for {loaded.unexpected_keys[0].removeprefix(PREFIX)}")


def prompt_learning(model: Any) -> str | None:
    """Return the kind of learned prompts (PROMPT_TUNING, PREFIX_TUNING, ...) in front of a model; None without any.

    They lengthen the model's input and belong to no weight, so PEFT cannot merge them.
    """
    kinds = [c for c in getattr(model, "peft_config", {}).values() if c.is_prompt_learning or c.is_adaption_prompt]
    return str(kinds[0].peft_type.value) if kinds else None


def carried(model: PreTrainedModel) -> Adapter | None:
    """Return the active adapter of a model that transformers has loaded with it, or None.

    Raises:
        UsageError: several adapters are active.
    """
    peft_model: Any = model
    if not getattr(model, "_hf_peft_config_loaded", False):
        return None
    names = peft_model.active_adapters()
    if len(names) > 1:
        raise UsageError(
            f"Expected one active adapter in the model, got {', '.join(names)}. Choose one with set_adapter."
        )
    state = get_peft_model_state_dict(peft_model, adapter_name=names[0], save_embedding_layers=False)
    return Adapter(peft_model.peft_config[names[0]], {PREFIX + name: tensor for name, tensor in state.items()})


def load_adapters_(model: Any, folder: Path) -> None:
    """Load saved adapters back into a model that has these adapters.

    Args:
        model: a `PeftModel`, or a model of transformers to which adapters were added; other models are left alone.
        folder: in which `save_pretrained` wrote them. A `PeftModel` saves each adapter but "default" in a subfolder of
            its own; other models save the first active one only.
    """
    is_wrapped = isinstance(model, PeftModel)
    if not is_wrapped and not getattr(model, "_hf_peft_config_loaded", False):
        return
    for name in [*model.peft_config] if is_wrapped else model.active_adapters()[:1]:
        adapter_folder = folder if name == "default" or not is_wrapped else folder / name
        state = load_peft_weights(str(adapter_folder), device="cpu")
        if not is_wrapped:
            state = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
        set_peft_model_state_dict(model, state, adapter_name=name)


@contextmanager
def adapters_aside(model: PreTrainedModel) -> Iterator[None]:
    """Hold a model without its adapters inside the block."""
    peft_model: Any = model
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    adapted: dict[str, Any] = {n: module for n, module in model.named_modules() if isinstance(module, kinds)}
    if not adapted:
        yield
        return
    conversions = getattr(model, "_weight_conversions", None)  # of the adapters, where they were loaded
    for name, module in adapted.items():
        plain = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
        model.set_submodule(name, plain)
    peft_model._hf_peft_config_loaded, peft_model._weight_conversions = False, None
    try:
        yield
    finally:
        for name, module in adapted.items():
            model.set_submodule(name, module)
        peft_model._hf_peft_config_loaded, peft_model._weight_conversions = True, conversions


def _embeddings(model: PreTrainedModel) -> tuple[str | None, str | None]:
    """Return the names of the input and the output embedding; None for one that the model lacks."""
    names = {module: name for name, module in model.named_modules()}
    try:
        tables: list[nn.Module | None] = [model.get_input_embeddings(), model.get_output_embeddings()]
    except NotImplementedError:  # a vision model
        return None, None
    input_name, output_name = (names.get(table) if table is not None else None for table in tables)
    return input_name, output_name


def _own_weight(name: str | None, adapter: Adapter) -> torch.Tensor | None:
    """Return the whole weight that an adapter has for a module, or None."""
    ends = (f".{name}.weight", f".{name}.base_layer.weight")
    return next((tensor for key, tensor in adapter.state.items() if name and key.endswith(ends)), None)


def _rows(model: PreTrainedModel, adapter: Adapter) -> int | None:
    """Return the number of rows of the embedding that an adapter contains, or None."""
    table = _own_weight(_embeddings(model)[0], adapter)
    return None if table is None else len(table)


def _unties(model: PreTrainedModel, adapter: Adapter) -> bool:
    """Return whether embeddings that the model ties differ after the adapter is merged.

    Raises:
        UsageError: the adapter itself is tied, which PEFT cannot merge.
    """
    first, last = _embeddings(model)
    if last is None or not getattr(model.config, "tie_word_embeddings", False):
        return False
    changed = [
        key
        for key in adapter.state
        if (f".{first}." in key or f".{last}." in key) and "trainable_tokens" not in key  # PEFT keeps those tied
    ]
    if changed and getattr(adapter.settings, "ensure_weight_tying", False):
        raise UsageError(
            "The adapter changes embeddings that the model ties, and ties its own changes (ensure_weight_tying). Merge "
            "it with PEFT first, and give the folder of the merged model."
        )
    input_weight, output_weight = _own_weight(first, adapter), _own_weight(last, adapter)
    if input_weight is not None and output_weight is not None and len(changed) == 2:
        return not torch.equal(input_weight, output_weight)
    return bool(changed)


def _untied(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the model whose output embedding has a weight of its own."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.tie_word_embeddings = False
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return rebuilt(model, config, weights)
