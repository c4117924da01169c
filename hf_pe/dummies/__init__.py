"""Small stand-ins: tiny models, example inputs, and comparisons of outputs."""
