"""Quantization to 4 and 8 bits through bitsandbytes."""

from hf_pe.quantize.recipe import BitsAndBytesQuantization as BitsAndBytesQuantization
