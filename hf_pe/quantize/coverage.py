"""Compute how much of a model stays in 16 or 32 bits after quantization, by parameters and by bytes."""

from collections import Counter
from dataclasses import dataclass

from hf_pe.anatomy import meta_model
from hf_pe.errors import without_numbers
from hf_pe.measure import bits_loaded
from hf_pe.model_spec import ModelSpec
from hf_pe.report import percent

LARGE = 1 / 3
"""Fraction of unquantized parameters above which there is a warning."""
NAMED = 3
"""Number of groups of tensors that a sentence names."""


@dataclass(frozen=True)
class Unquantized:
    """Describe the parameters that are not quantized.

    Attributes:
        parameters: Their fraction of all parameters.
        bytes: Their fraction of the bytes of all weights after quantization.
        bits: Bits that most of them take each.
        largest: Fractions of all parameters in the largest groups of tensors, by name, largest first.
    """

    parameters: float
    bytes: float
    bits: int
    largest: dict[str, float]

    @property
    def note(self) -> str:
        """The fractions as a sentence for plans and cards."""
        if not self.parameters:
            return "all parameters are quantized"
        groups = ", ".join(f"{name} {percent(fraction)}" for name, fraction in self.largest.items())
        return (
            f"{self.parameters:.1%} of the parameters stay in {self.bits} bits and take {self.bytes:.1%} of the bytes "
            f"(of all parameters: {groups})"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """The note alone, or nothing where a warning has it."""
        return () if self.parameters > LARGE else (self.note,)

    def warnings(self, quantizer: str) -> tuple[str, ...]:
        """Return a warning where a large fraction is not quantized.

        Args:
            quantizer: Name of the library that quantized the rest.
        """
        if self.parameters <= LARGE:
            return ()
        return (
            f"Quantization covers only a part of this model: {self.note}. {quantizer} quantizes linear layers; "
            "embeddings, convolutions and experts that are stored as one tensor keep their dtype.",
        )


def unquantized(spec: ModelSpec) -> Unquantized:
    """Describe the parameters of a quantized model that stay in 16 or 32 bits.

    Args:
        spec: Model after quantization, whose `bits` has every quantized weight.
    """
    model = meta_model(spec.config, spec.model_class)
    plain = bits_loaded(model, spec.config.dtype)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    rest = {name: count for name, count in counts.items() if name not in spec.bits}
    rest_bits = sum(count * plain[name] for name, count in rest.items())
    bits = rest_bits + sum(count * spec.bits[name] for name, count in counts.items() if name not in rest)
    counts_by_bits, groups = Counter[int](), Counter[str]()
    for name, count in rest.items():
        counts_by_bits[plain[name]] += count
        groups[without_numbers(name)] += count
    total = sum(counts.values())
    return Unquantized(
        parameters=sum(rest.values()) / total,
        bytes=rest_bits / bits,
        bits=counts_by_bits.most_common(1)[0][0] if counts_by_bits else 0,
        largest={name: count / total for name, count in groups.most_common(NAMED)},
    )
