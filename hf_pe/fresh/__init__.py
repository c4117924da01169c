"""Fresh processes: programs that run without hf_pe, started by a server that has the libraries loaded."""
