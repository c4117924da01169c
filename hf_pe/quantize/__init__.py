"""Fewer bits a weight: 4 and 8 through a quantizer, 16 by casting."""

from hf_pe.quantize.cast import Cast as Cast
from hf_pe.quantize.checkpoint import dequantize_checkpoint as dequantize_checkpoint
from hf_pe.quantize.checkpoint import quantize_checkpoint as quantize_checkpoint
from hf_pe.quantize.recipe import BitsAndBytesQuantization as BitsAndBytesQuantization

Packing = BitsAndBytesQuantization | Cast
"""What may make a variant: nothing is cut or trained after it."""
