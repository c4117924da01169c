"""Distillation: a student learns what its teacher gives."""

from hf_pe.distill.lora import Lora as Lora
from hf_pe.distill.recipe import Distillation as Distillation
from hf_pe.distill.trainer import DistillationMixin as DistillationMixin
from hf_pe.distill.trainer import DistillationTrainer as DistillationTrainer
