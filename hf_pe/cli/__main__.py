"""Let `python -m hf_pe.cli` run the same commands as `hf-pe`."""

from hf_pe.cli.main import app

if __name__ == "__main__":
    app()
