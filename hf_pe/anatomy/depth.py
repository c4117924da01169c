"""Tells which layers of a stack can be removed without changing what the others are."""

from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy.axis import Axis
from hf_pe.anatomy.meta import meta_model


def removable_layers(config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis) -> list[int]:
    """Return the indices of the layers whose tensors have the names and shapes that most layers of the stack have.

    Other layers depend on their position and stay: ModernBERT's first one has no norm, SAM's last one attends to the
    whole image.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in meta_model(config, model_class).state_dict().items()}
    layers: dict[int, set[tuple[str, tuple[int, ...]]]] = {}
    for slot in axis.slots:
        position, _, tensor_name = slot.name[len(slot.group) + 1 :].partition(".")
        layers.setdefault(int(position), set()).add((tensor_name, shapes.get(slot.name, ())))
    tensors = list(layers.values())
    # of two sorts that are as frequent the later one: the first layer may lead into a stage
    common = max(reversed(tensors), key=tensors.count)
    return [i for i in sorted(layers) if layers[i] == common]
