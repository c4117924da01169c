"""Checks that a model generates the same few greedy tokens with its cache and without.

A forward pass alone would not show a broken cache: transformers sizes the cache from the config (T5's by its encoder
layers), and some caches need a layer of a certain kind (Qwen3-Next's one with full attention).
"""

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import Architecture, meta_model
from hf_pe.dummies.fields import MROPE_SECTIONS
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.errors import one_line, pass_on_memory_errors

TOKENS = 4
"""Number of tokens that are generated."""
TOLERANCE = 1e-4
"""Largest relative difference in float32 between logits with and without the cache."""
MAX_PARAMETERS = 10_000_000
"""Parameters up to which a model is run for this check."""


def generation_fault(before: PretrainedConfig, after: PretrainedConfig, model_class: type[PreTrainedModel]) -> str:
    """Return why a model built from `after` cannot generate although one built from `before` can; "" where it can.

    Args:
        before: a small config, from which a model with random weights is built.
        after: the same after a cut.
        model_class: of both.
    """
    if not model_class.can_generate():
        return ""
    fault = _fault(Architecture.of(after, model_class))
    return fault if fault and not _fault(Architecture.of(before, model_class)) else ""


def depth_fault(before: PretrainedConfig, after: PretrainedConfig, model_class: type[PreTrainedModel]) -> str | None:
    """Return why a model cannot generate after a cut of depth, checked on tiny models of the same depths.

    Returns:
        "" where it can; None where this could not be checked, since no tiny model of the original generates.
    """
    if not model_class.can_generate():
        return ""
    for sections in ((), *MROPE_SECTIONS):
        try:
            small = tiny(before, depth=True, sections=sections)
            shallow = tiny(after, depth=True, sections=sections)
        except Exception as error:  # a config may refuse values with any error
            pass_on_memory_errors(error)
            continue
        if not _fault(Architecture.of(small, model_class)):
            return generation_fault(small, shallow, model_class)
    return None


@functools.lru_cache(maxsize=256)
def _fault(architecture: Architecture) -> str:
    """Return why a model of this architecture fails to generate; "" where one of its `generate` functions works."""
    config, model_class = architecture.config, architecture.model_class
    generating: Any = model_class
    functions = (generating.generate, GenerationMixin.generate)  # a model's own may need more than text
    try:
        if sum(p.numel() for p in meta_model(config, model_class).parameters()) > MAX_PARAMETERS:
            return f"a tiny model has more than {MAX_PARAMETERS:,} parameters"
        model = randomize_weights_(model_class(copy.deepcopy(config)))
    except Exception as error:
        pass_on_memory_errors(error)
        return _as_reason(error)
    faults = (_fault_of(model, generate) for generate in dict.fromkeys(functions))
    first = next(faults)
    return "" if not first or any(not fault for fault in faults) else first


def _fault_of(model: PreTrainedModel, generate: Callable[..., Any]) -> str:
    """Return why one `generate` function fails; "" where it works."""
    try:
        cached, plain = (_logits(model, generate, use_cache=use_cache) for use_cache in (True, False))
        gap = difference(plain, cached)
    except Exception as error:  # any error is a reason
        pass_on_memory_errors(error)
        return _as_reason(error)
    return "" if gap <= TOLERANCE else f"logits with its cache differ from those without by {gap:.1e}"


def _logits(model: PreTrainedModel, generate: Callable[..., Any], *, use_cache: bool) -> list[torch.Tensor]:
    """Return the logits of each generated token [batch, vocabulary]; the token ids where there are no logits."""
    inputs = {name: tensor for name, tensor in example_inputs(model).items() if not name.startswith("decoder_")}
    start = {"decoder_start_token_id": 0} if model.config.is_encoder_decoder else {}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        result = generate(
            model,
            **inputs,
            **start,
            max_new_tokens=TOKENS,
            do_sample=False,
            num_beams=1,
            use_cache=use_cache,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = getattr(result, "logits", None)
    return list(logits) if logits else [torch.as_tensor(getattr(result, "sequences", result)).float()]


def _as_reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 200)}"
