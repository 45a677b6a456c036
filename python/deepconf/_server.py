"""The server that `--url` names, and the key for it, which is shown nowhere."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deepconf.errors import InvalidInput

if TYPE_CHECKING:
    from deepconf._options import Common

__all__ = ["Server", "of"]


@dataclass(frozen=True)
class Server:
    """A server, and a model on it."""

    url: str
    model: str
    api_key: str | None = field(repr=False)

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `OpenAI`, with what `--engine-arg` says.

        Raises:
            InvalidInput: it takes no such argument.
        """
        from deepconf.engines import OpenAI

        known = inspect.signature(OpenAI).parameters.keys() - {"base_url", "model", "api_key"}
        for name in given.keys() - known:
            every = ", ".join(sorted(known - {"sampling", "chat", "chat_template_kwargs"}))
            raise InvalidInput(
                f"--engine-arg {name!r}: with --url there are {every}; what the server itself is "
                "started with is said there"
            )
        return {
            "base_url": self.url,
            "model": self.model,
            "api_key": self.api_key,
            **given,
        }


def of(options: Common) -> Server | None:
    """The server that the options name, with its only model where they name none.

    Raises:
        InvalidInput: the key's variable is not set, or there is no `--url` for it; the server has
            several models.
        EngineError: the server cannot be reached.
    """
    variable = options.api_key_env
    if options.url is None:
        if variable is not None:
            raise InvalidInput("--api-key-env: is for --url, which is not given")
        return None
    from deepconf.engines.openai._client import checked_url

    url = checked_url(options.url)  # It is shown from here on.
    if variable is not None and not re.fullmatch(r"[A-Za-z_]\w*", variable, re.ASCII):
        # It may be the key itself.
        raise InvalidInput("--api-key-env: must be the name of an environment variable")
    key = None if variable is None else os.environ.get(variable)
    if variable is not None and not key:
        raise InvalidInput(f"--api-key-env {variable}: there is no such environment variable")
    model = options.model
    if model is None:
        from deepconf.engines.openai._probe import only_model

        model = only_model(url, key)
    return Server(url, model, key)
