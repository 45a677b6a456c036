"""The commands, with typer: one module for those that belong together."""

from __future__ import annotations

from deepconf.commands import ask as ask
from deepconf.commands import batch as batch
from deepconf.commands import diagnose as diagnose
from deepconf.commands import importing as importing
from deepconf.commands import replay as replay
from deepconf.commands import tune as tune
from deepconf.commands._app import app

__all__ = ["app"]
