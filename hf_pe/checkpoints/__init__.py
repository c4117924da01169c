"""Loading what users name, saving, and the check that a saved folder loads again without hf_pe."""
