"""A run: order, dry run, stages, measurement, result."""
