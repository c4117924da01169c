"""Run programs in fresh processes without hf_pe, started by a server that has imported the libraries already."""
