"""Structured pruning: what to keep, and repairing what is left."""

from hf_pe.prune.recipe import StructuredPruning as StructuredPruning
from hf_pe.prune.stream import cut_checkpoint as cut_checkpoint
