"""Measures models: size, FLOPs, latency, memory and quality.

`measure` does all of it for several models side by side, so that the figures of a smaller model and of its original
come from the same machine, the same inputs and the same rows.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from hf_pe.dummies.sizes import processor_size
from hf_pe.measure.devices import on_one_device as on_one_device
from hf_pe.measure.flops import flops as flops
from hf_pe.measure.latency import alternating as alternating
from hf_pe.measure.latency import latency as latency
from hf_pe.measure.latency import pixels_of as pixels_of
from hf_pe.measure.latency import shared_size as shared_size
from hf_pe.measure.memory import longest as longest
from hf_pe.measure.memory import reopened as reopened
from hf_pe.measure.quality import Evaluate as Evaluate
from hf_pe.measure.quality import chance_warnings as chance_warnings
from hf_pe.measure.quality import changes as changes
from hf_pe.measure.quality import evaluate_task as evaluate_task
from hf_pe.measure.quality import first_outputs as first_outputs
from hf_pe.measure.quality import quality as quality
from hf_pe.measure.sentences import sentence_difference as sentence_difference
from hf_pe.measure.size import layer_bits as layer_bits
from hf_pe.measure.size import parameters as parameters
from hf_pe.measure.size import weight_bytes as weight_bytes
from hf_pe.model_spec import Parameters as Parameters
from hf_pe.model_spec import bits_loaded as bits_loaded
from hf_pe.model_spec import spec_sizes as spec_sizes
from hf_pe.report import Latency, Measurement, pixels_named
from hf_pe.surgery import dtype_name
from hf_pe.tasks import EvalResult, TaskData

LENGTH = 128
BATCHES = (1, 32)


def measure(
    models: dict[str, PreTrainedModel],
    data: TaskData | None = None,
    *,
    evaluations: dict[str, EvalResult] | None = None,
    evaluate: Evaluate | None = None,
    batches: Sequence[int] = BATCHES,
    length: int = LENGTH,
    pixels: Any = None,
) -> dict[str, Measurement]:
    """Measure the size, FLOPs, latency and quality of models side by side.

    Bytes on disk and peak memory belong to a saved folder, and are added when a model is saved.

    Args:
        models: by name.
        data: rows that quality is measured on.
        evaluations: results of `evaluate_task` by the names of `models`, if they have been evaluated already.
        evaluate: a function of the user that returns the metrics of a model, used instead of the task's evaluation.
        batches: batch sizes that latency is measured at.
        length: tokens per example for text models; fewer if a model has fewer positions.
        pixels: side, or [height, width], of images for models whose config has no image size; default: the size that
            the processor of `data` makes.
    """
    length = min(longest(model.config, length) for model in models.values())
    shared = shared_size(models.values(), pixels or processor_size(data.processor if data else None))
    times: dict[str, list[Latency]] = {name: [] for name in models}
    for batch in batches:
        for name, timed in latency(models, batch=batch, length=length, pixels=shared).items():
            times[name].append(timed)
    return {
        name: Measurement(
            parameters=parameters(model).total,
            parameters_without_embeddings=parameters(model).without_embeddings,
            dtype=dtype_name(model.dtype),
            flops=flops(model.config, type(model), length=length, pixels=shared),
            flops_setting=f"batch 1, length {length}"
            if model.main_input_name == "input_ids"
            else f"batch 1{pixels_named(pixels_of(model, shared))}",
            latency=tuple(times[name]),
            quality=evaluations[name].scores() if evaluations else quality(model, data, evaluate),
        )
        for name, model in models.items()
    }
