"""Where a model's labels come from: the one map whose outputs move with their number."""

import copy
import functools

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy.meta import Architecture, meta_model


def label_head(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> str | None:
    """Name of the linear map (or 1 x 1 convolution) whose outputs are the labels; None where there is not exactly one.

    Found by difference, as axes are: the model is built with one label more, without weights.
    """
    return _label_head(Architecture.of(config, model_class))


@functools.lru_cache(maxsize=256)
def _label_head(architecture: Architecture) -> str | None:
    more = copy.deepcopy(architecture.config)
    more.num_labels = (more.num_labels or 0) + 1
    base, other = (meta_model(config, architecture.model_class) for config in (architecture.config, more))
    shapes = {name: p.shape for name, p in other.named_parameters()}
    moved = {name.rpartition(".")[0] for name, p in base.named_parameters() if shapes.get(name, p.shape) != p.shape}
    if len(moved) != 1:
        return None
    (name,) = moved
    module = base.get_submodule(name)
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    return name if isinstance(module, nn.Linear) or pointwise else None
