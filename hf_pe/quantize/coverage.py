"""How much of a model quantization does not reach: what stays in 16 or 32 bits, by parameters and by bytes."""

from collections import Counter
from dataclasses import dataclass

from hf_pe.anatomy import meta_model
from hf_pe.errors import without_numbers
from hf_pe.measure import bits_loaded
from hf_pe.model_spec import ModelSpec
from hf_pe.report import percent

LARGE = 1 / 3
"""Share of the parameters from which on it is worth a warning that they are not quantized."""
NAMED = 3
"""Groups of tensors that a sentence names."""


@dataclass(frozen=True)
class Unquantized:
    """The parameters that keep their dtype.

    Attributes:
        parameters: their share of all parameters.
        bytes: their share of the bytes of all weights after quantization.
        bits: what most of them take, each.
        largest: names of the largest groups of tensors and their shares of all parameters, largest first.
    """

    parameters: float
    bytes: float
    bits: int
    largest: dict[str, float]

    @property
    def note(self) -> str:
        """The shares as a sentence for plans and cards."""
        if not self.parameters:
            return "all parameters are quantized"
        groups = ", ".join(f"{name} {percent(share)}" for name, share in self.largest.items())
        return (
            f"{self.parameters:.1%} of the parameters stay in {self.bits} bits and take {self.bytes:.1%} of the bytes "
            f"(of all parameters: {groups})"
        )

    def warnings(self, quantizer: str) -> tuple[str, ...]:
        """Return a sentence where the share is large.

        Args:
            quantizer: name of the library that quantized the rest.
        """
        if self.parameters <= LARGE:
            return ()
        return (
            f"Quantization reaches little of this model: {self.note}. {quantizer} quantizes linear layers; "
            "embeddings, convolutions and experts that are held as one tensor keep their dtype.",
        )


def unquantized(spec: ModelSpec) -> Unquantized:
    """Return what `spec`, a model after quantization, holds in 16 or 32 bits.

    Args:
        spec: `bits` names every quantized weight.
    """
    model = meta_model(spec.config, spec.model_class)
    plain = bits_loaded(model, spec.config.dtype)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    rest = {name: count for name, count in counts.items() if name not in spec.bits}
    rest_bits = sum(count * plain[name] for name, count in rest.items())
    bits = rest_bits + sum(count * spec.bits[name] for name, count in counts.items() if name not in rest)
    widths, groups = Counter[int](), Counter[str]()
    for name, count in rest.items():
        widths[plain[name]] += count
        groups[without_numbers(name)] += count
    total = sum(counts.values())
    return Unquantized(
        parameters=sum(rest.values()) / total,
        bytes=rest_bits / bits,
        bits=widths.most_common(1)[0][0] if widths else 0,
        largest={name: count / total for name, count in groups.most_common(NAMED)},
    )
