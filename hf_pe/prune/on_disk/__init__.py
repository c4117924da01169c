"""Cut a checkpoint on disk tensor by tensor, without loading the model."""
