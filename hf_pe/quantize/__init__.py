"""Store weights in fewer bits: 4 or 8 through a quantizer, 16 by casting."""

from hf_pe.quantize.cast import Cast as Cast
from hf_pe.quantize.checkpoint import dequantize_checkpoint as dequantize_checkpoint
from hf_pe.quantize.checkpoint import quantize_checkpoint as quantize_checkpoint
from hf_pe.quantize.recipe import BitsAndBytesQuantization as BitsAndBytesQuantization

Packing = BitsAndBytesQuantization | Cast
"""Recipes that can make a variant: they only change the precision of the final model."""
