"""Read and write files: completely or not at all, bounded in size, and never outside a model's folder."""
