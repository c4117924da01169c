"""Cutting a checkpoint tensor by tensor, without loading the model."""
