"""Identifies the classification head: the one layer whose outputs change with the number of labels."""

import copy
import functools

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy.meta import Architecture, meta_model


def label_head(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> str | None:
    """Return the name of the linear layer (or 1 x 1 convolution) that computes the labels; None where it is not one.

    As with axes, the model is built twice on the meta device, the second time with one more label, and compared.
    """
    return _label_head(Architecture.of(config, model_class))


@functools.lru_cache(maxsize=256)
def _label_head(architecture: Architecture) -> str | None:
    with_one_more = copy.deepcopy(architecture.config)
    with_one_more.num_labels = (with_one_more.num_labels or 0) + 1
    base, probe = (meta_model(config, architecture.model_class) for config in (architecture.config, with_one_more))
    shapes = {name: p.shape for name, p in probe.named_parameters()}
    changed = {name.rpartition(".")[0] for name, p in base.named_parameters() if shapes.get(name, p.shape) != p.shape}
    if len(changed) != 1:
        return None
    (name,) = changed
    module = base.get_submodule(name)
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    return name if isinstance(module, nn.Linear) or pointwise else None
