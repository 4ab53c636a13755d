"""`python -m proponent`."""

from proponent.cli import app

app()
