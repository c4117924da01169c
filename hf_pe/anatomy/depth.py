"""Which layers of a stack can be removed without changing what the others are."""

from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy.axis import Axis
from hf_pe.anatomy.meta import meta_model


def removable_layers(config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis) -> list[int]:
    """Layers built like their neighbours. The others (ModernBERT's first has no norm, SAM's last looks at all of an
    image) hold their position."""
    shapes_of = {name: tuple(tensor.shape) for name, tensor in meta_model(config, model_class).state_dict().items()}
    members: dict[int, set[tuple[str, tuple[int, ...]]]] = {}
    for slot in axis.slots:
        position, _, rest = slot.name[len(slot.group) + 1 :].partition(".")
        members.setdefault(int(position), set()).add((rest, shapes_of.get(slot.name, ())))
    shapes = list(members.values())
    # of two kinds that are as frequent the later one: the first layer may lead into a stage
    common = max(reversed(shapes), key=shapes.count)
    return [i for i in sorted(members) if members[i] == common]
