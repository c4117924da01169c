"""Names the module in which float16 overflows.

The largest value of float16 is 65,504, and activations of models trained in bfloat16 or float32 may exceed it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

WAY_OUT = "Use bfloat16, which has the range of float32, or float32 itself (dtype)"


def in_float16(model: PreTrainedModel) -> bool:
    """Return whether any weight of `model` is in float16."""
    return any(parameter.dtype == torch.float16 for parameter in model.parameters())


def overflow_of(model: PreTrainedModel, run: Callable[[], Any]) -> str | None:
    """Return a sentence that names the first module of a float16 model whose output is not finite.

    Args:
        model: in any dtype.
        run: passes some inputs through `model`.

    Returns:
        None where every module's output is finite, or no weight is in float16.
    """
    if not in_float16(model):
        return None
    with _first_not_finite(model) as names, torch.no_grad():
        run()
    if not names:
        return None
    return f"The model's weights are in float16, which overflows in {names[0]}: its outputs are not finite. {WAY_OUT}."


@contextmanager
def _first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that gets the name of the first module to return NaN or infinity; masks may be minus infinity."""
    names: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if not any(module.children()):

            def check(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                tensors = output if isinstance(output, tuple | list) else (output,)
                if not names and any(overflows(tensor) for tensor in tensors):
                    names.append(name)

            handles.append(module.register_forward_hook(check))
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def overflows(value: Any) -> bool:
    """Return whether a tensor has a NaN or plus infinity; masked entries may be minus infinity."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return False
    return bool((value.isnan() | (value == torch.inf)).any())
