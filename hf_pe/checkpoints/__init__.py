"""Load the model that a user names, save it, and check that a saved folder loads again without hf_pe."""
