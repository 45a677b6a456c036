"""What the commands share: their errors, their stdout, their policies and engine."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec, TextIO

import typer

from deepconf import _layers, _server, _settings
from deepconf._core import Policy
from deepconf._server import Server
from deepconf.errors import DeepConfError, InvalidInput

if TYPE_CHECKING:
    from rich.console import Console

    from deepconf._options import Common
    from deepconf.engines import VLLM, OpenAI

__all__ = ["INTERRUPTED", "Setup", "guarded", "own_stdout"]

P = ParamSpec("P")

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Errors as one line; Ctrl-C, SIGTERM and SIGHUP as the exit code that shells have for them."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with _signals_as_ctrl_c() as received:
            try:
                command(*args, **kwargs)
            except DeepConfError as error:
                if not received:
                    fail(error)
                _say(f"error: {' '.join(str(error).split())}")
            except KeyboardInterrupt:
                _say("interrupted")
                raise typer.Exit(128 + received[0] if received else INTERRUPTED) from None
            except (OSError, typer.Exit):
                if not received:
                    raise  # Else the terminal is gone, or a command gave the code of Ctrl-C.
            if received:
                raise typer.Exit(128 + received[0])

    return run


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP go the way of Ctrl-C in the block; gives those that came.

    A second one ends the process at once. Where the caller has its own handler, or ignores the
    signal as `nohup` does, that stays.
    """
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(number)
        raise KeyboardInterrupt

    taken = []
    if threading.current_thread() is threading.main_thread():  # Others cannot.
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, handle)
                taken.append(number)
    try:
        yield received
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # The terminal is gone.
        typer.echo(text, err=True)


def fail(error: DeepConfError) -> NoReturn:
    typer.secho(f"error: {' '.join(str(error).split())}", fg=typer.colors.RED, err=True)
    raise typer.Exit(2)


@contextlib.contextmanager
def own_stdout() -> Iterator[TextIO]:
    """The stdout for results; what else is written there meanwhile goes to stderr.

    vLLM and its processes write to stdout, some of it below Python's `sys.stdout`.
    """
    out = sys.stdout
    try:
        is_real = out.fileno() == 1
    except OSError:
        is_real = False
    if not is_real:  # Captured, by a test or by whoever calls `main`.
        with contextlib.redirect_stdout(sys.stderr):
            yield out
        return
    out.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(kept, "w", encoding=out.encoding, errors=out.errors, closefd=False) as results:
            yield results
    finally:
        out.flush()
        os.dup2(kept, 1)
        os.close(kept)


@dataclass(frozen=True)
class Setup:
    """The policies and the engine that were asked for."""

    model: str
    server: Server | None
    """Where it is served, if it is not to be started here."""
    policies: dict[str, Policy]
    sampling: dict[str, Any]
    engine: dict[str, Any]
    chat: bool | None
    chat_template_kwargs: dict[str, Any]
    in_words: str
    """What is in force, and where it was given."""

    @classmethod
    def make(cls, options: Common, names: Sequence[str]) -> Setup:
        """From options, with the model's settings file for what they leave out.

        Without names, the policy is the one that the settings file chooses, or `low`.
        """
        server = _server.of(options)
        model = options.model if server is None else server.model
        if model is None:
            raise InvalidInput("--model MODEL or --url http://HOST:PORT/v1 must be given")
        if options.settings is None:
            defaults = _settings.find(model)
        else:
            defaults = _settings.read(options.settings.expanduser())
        names = names or [defaults.chosen or "low"]
        explicit = _settings.pairs(options.set_, "--set")
        policies = _layers.in_force(
            names,
            defaults.policy,
            options.given(*options.names),
            explicit,
            defaults.policies,
            defaults.origin,
        )
        sampling, where = _layers.merged(
            _layers.Layer(defaults.origin, defaults.sampling),
            _layers.Layer(_layers.OPTIONS, options.given("temperature", "top_p", "max_tokens")),
            _layers.Layer("--sampling", _settings.pairs(options.sampling, "--sampling")),
        )
        given = _settings.pairs(options.engine_arg, "--engine-arg")
        engine = _settings.engine_args(defaults, given) if server is None else given
        where |= {n: "--engine-arg" if n in given else defaults.origin for n in engine}
        return cls(
            model=model,
            server=server,
            policies={name: found.policy for name, found in policies.items()},
            sampling=sampling,
            engine=engine,
            chat=options.chat,
            chat_template_kwargs=_settings.json_object(
                options.chat_template_kwargs, "--chat-template-kwargs"
            ),
            in_words=_layers.in_words(policies, {**sampling, **engine}, where),
        )

    def settings(self) -> dict[str, Any]:
        """What the engine's `settings` will be, before it has started."""
        from deepconf.engines import openai, vllm

        if self.server is not None:
            return openai.settings_of(**self._asked())
        found: dict[str, Any] = vllm.settings_of(**self._asked(), engine_args=self._arguments())
        return found

    @contextlib.contextmanager
    def start(self, err: Console) -> Iterator[VLLM | OpenAI]:
        """The engine, until the end of the block."""
        from deepconf._render import show_settings
        from deepconf._terminal import working
        from deepconf.engines import VLLM, OpenAI

        # Its warnings are about how it was built, and hide ours.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        show_settings(err, self.in_words)
        engine: VLLM | OpenAI
        if self.server is not None:
            with working(err, f"asking {self.server.url} what it gives"):
                engine = OpenAI(**self.server.arguments(self.engine), **self._asked())
            err.print(f"server: {engine.capabilities}", soft_wrap=True)
        else:
            with working(err, f"starting vLLM on {self.model}, which takes about a minute"):
                engine = VLLM(self.model, **self._asked(), **self._arguments())
        try:
            yield engine
        finally:
            engine.close()

    def _asked(self) -> dict[str, Any]:
        """What any engine is told of how to ask."""
        return {
            "sampling": self.sampling,
            "chat": self._chat(),
            "chat_template_kwargs": self.chat_template_kwargs,
        }

    def _chat(self) -> Literal["auto", True, False]:
        return "auto" if self.chat is None else self.chat

    def _arguments(self) -> dict[str, Any]:
        most = max(policy.top_logprobs for policy in self.policies.values())
        # What vLLM allows by default.
        return {"max_logprobs": most, **self.engine} if most > 20 else dict(self.engine)
