"""Reading and writing files: whole or not at all, bounded, and never outside a model's folder."""
