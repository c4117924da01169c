"""Swaps the backbone of a model: puts a compact architecture under the head that was trained."""

from hf_pe.backbones.listing import candidates as candidates
from hf_pe.backbones.presets import PRESETS as PRESETS
from hf_pe.backbones.recipe import BackboneSwap as BackboneSwap
from hf_pe.backbones.separable import SeparableConvolutions as SeparableConvolutions
