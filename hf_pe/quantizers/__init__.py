"""Quantizers: libraries that store weights in fewer bits. `hf_pe.quantizers.registry` has the list of them."""
