"""Structured pruning: choose the units to keep, cut the others out, and refit the weights that remain."""

from hf_pe.prune.on_disk.cut import cut_checkpoint as cut_checkpoint
from hf_pe.prune.recipe import StructuredPruning as StructuredPruning
