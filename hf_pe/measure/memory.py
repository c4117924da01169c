"""Measures the memory that a saved folder needs in a fresh process, and compares the outputs there with the model's."""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import custom_modules_of
from hf_pe.checkpoints.classes import brings_code
from hf_pe.checkpoints.reload import ReloadedFolder, loading_for, open_in_fresh_process
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import outputs_of
from hf_pe.dummies.sizes import processor_size
from hf_pe.loading import Loading
from hf_pe.tasks import positions


def longest(config: PretrainedConfig, length: int) -> int:
    """Return `length`, or the number of the model's positions if it has fewer."""
    return min(length, positions(config) or length)


def reopened(
    folder: Path,
    model: PreTrainedModel,
    auto_class: str,
    processor: Any,
    *,
    length: int = 128,
    pixels: Any = None,
) -> tuple[ReloadedFolder, Loading]:
    """Load `folder` in a fresh process with the classes that the card names; compare with `model`.

    Returns:
        The measurements of the fresh process (parameters, peak memory of loading and one forward pass, largest relative
        difference of the outputs), and how the folder was loaded.
    """
    length = longest(model.config, length)
    loading = loading_for(
        auto_class,
        processor,
        plugin=custom_modules_of(model.config) is not None,
        own_code=brings_code(type(model)),
    )
    inputs = example_inputs(model, batch=1, length=length, pixels=pixels or processor_size(processor))
    return open_in_fresh_process(folder, loading, inputs, outputs_of(model, inputs), model.device), loading
