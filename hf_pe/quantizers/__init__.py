"""Wrap quantizers, the libraries that store weights in fewer bits; `hf_pe.quantizers.registry` lists them."""
