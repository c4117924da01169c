"""Provide the command line `hf-pe`."""

from hf_pe.cli import run  # noqa: F401  each module adds its commands to the app, in the order of the help

# isort: split
from hf_pe.cli import convert, share  # noqa: F401
from hf_pe.cli.main import app as app
