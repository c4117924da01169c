"""Distillation losses: pure functions that compare the outputs of a student with those of a teacher."""
