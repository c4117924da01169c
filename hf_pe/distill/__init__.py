"""Distillation: a student learns what its teachers give."""

from hf_pe.distill.augment import Augment as Augment
from hf_pe.distill.lora import Lora as Lora
from hf_pe.distill.recipe import Distillation as Distillation
from hf_pe.distill.schedule import Schedule as Schedule
from hf_pe.distill.teachers.cached import Cache as Cache
from hf_pe.distill.teachers.load import Teacher as Teacher
from hf_pe.distill.trainer import DistillationMixin as DistillationMixin
from hf_pe.distill.trainer import DistillationTrainer as DistillationTrainer
