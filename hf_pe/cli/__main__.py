"""`python -m hf_pe.cli` is `hf-pe`."""

from hf_pe.cli.main import app

if __name__ == "__main__":
    app()
