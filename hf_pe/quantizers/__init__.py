"""Quantizers: libraries that store weights in fewer bits."""
