"""Structured pruning: what to keep, and refitting what is left."""

from hf_pe.prune.on_disk.cut import cut_checkpoint as cut_checkpoint
from hf_pe.prune.recipe import StructuredPruning as StructuredPruning
