"""Distillation: a smaller model, the student, is trained to compute the outputs of larger models, its teachers.

`Distillation` is the recipe; `DistillationTrainer` and `DistillationMixin` do the same in a training script with a
Trainer of transformers. `hf_pe.distill.objective` has the formula of the loss.
"""

from hf_pe.distill.augment import Augment as Augment
from hf_pe.distill.lora import Lora as Lora
from hf_pe.distill.recipe import Distillation as Distillation
from hf_pe.distill.schedule import Schedule as Schedule
from hf_pe.distill.teachers.cached import Cache as Cache
from hf_pe.distill.teachers.load import Teacher as Teacher
from hf_pe.distill.trainer import DistillationMixin as DistillationMixin
from hf_pe.distill.trainer import DistillationTrainer as DistillationTrainer
