"""The commands, with typer: one module for those that belong together."""

from __future__ import annotations

from deepconf.commands import ask as ask
from deepconf.commands import importing as importing
from deepconf.commands._app import app

__all__ = ["app"]
