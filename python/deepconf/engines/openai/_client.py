"""HTTP: connections to one server, and what can go wrong with them, in our words.

The key is in no message, and no exception of the client library, which has all headers in its
`repr`, is handed on. Redirects are not followed, so nothing sends the key anywhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import errno
import importlib.util
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deepconf.engines.openai._descriptors import most_connections
from deepconf.errors import EngineError, InvalidInput, InvalidType, MissingExtra

if TYPE_CHECKING:
    import aiohttp

__all__ = ["BUSY", "PASSING", "Client", "Passing", "Refused", "checked_url"]

# Bytes of an answer that is no stream: an error, or the list of models.
_MOST = 4 << 20
# Characters that a secret has at least.
_SECRET = 6
# Characters of a server's own words in a message.
_WORDS = 300
# Bytes of a stream that are read ahead: some ten tokens. What is there when a trace is stopped was
# generated in vain, and hundreds of streams have a buffer each.
_BUFFER = 16 << 10
# Seconds that an unused connection is kept: fewer than servers keep it, 5 as a rule.
_IDLE = 4.0
# Seconds for what is answered at once.
_SHORT = 30.0
# There is no room: too early, too many requests, a proxy without its server.
BUSY = frozenset((408, 425, 429, 502, 503, 504, 529))
# What another try may mend.
PASSING = BUSY | {500}


class Passing(EngineError):
    """A failure that another try may mend.

    Args:
        message: what happened.
        after: seconds to wait before, where the server says so.
        away: whether there was no server at all.
        refused: whether it was refused before anything was generated.
        busy: whether there is no room for it, on the server or in this process.
    """

    def __init__(
        self,
        message: str,
        *,
        after: float | None = None,
        away: bool = False,
        refused: bool = False,
        busy: bool = False,
    ) -> None:
        self.after = after
        self.away = away
        self.refused = refused or away or busy
        self.busy = busy
        super().__init__(message)


class Refused(InvalidInput, EngineError):
    """The server does not take the request, and will not another time.

    Args:
        message: what it says.
        status: its status code.
    """

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class Client:
    """Connections to one server, as many as are asked for at once and this process may have.

    Args:
        base_url: where its interface begins, such as `http://localhost:8000/v1`.
        api_key: sent as a bearer token.
        headers: further headers of every request.
        connect_timeout: seconds to connect.
        patience: seconds for which a server that has no room is asked again.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        headers: Mapping[str, str],
        connect_timeout: float,
        patience: float,
    ) -> None:
        for package in ("aiohttp", "msgspec"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtra("http", package)
        self.base_url = checked_url(base_url)
        self.patience = patience
        # A server that compresses keeps tokens back.
        self._headers = {"Accept-Encoding": "identity", **_checked_headers(headers)}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {_checked_key(api_key)}"
        self._secrets = _secrets((api_key or "", *headers.values()))
        self._connect_timeout = connect_timeout
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()
            await asyncio.sleep(0)  # Its sockets close in the loop's next turn.

    def _opened(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=most_connections() or 0, keepalive_timeout=_IDLE
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=_BUFFER,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout),
            )
        return self._session

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, body: Mapping[str, Any]
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """The events that a request is answered with; the connection is closed with the block.

        Raises:
            Passing: it may work another time.
            Refused: the server does not take the request.
            EngineError: what comes is no stream of events.
        """
        import aiohttp

        url = self.base_url + path
        headers = {**self._headers, "Accept": "text/event-stream"}
        begun, failure = False, None
        try:
            async with self._opened().post(
                url, json=dict(body), headers=headers, allow_redirects=False
            ) as response:
                begun = True
                try:
                    if response.status != 200:
                        raise await self._refusal(response, url)
                    if response.content_type != "text/event-stream":
                        kind = self.redacted(response.content_type)[:_WORDS]
                        start = self.quoted(await _start(response))
                        raise EngineError(
                            f"{url} answers with {kind} where a stream of events was asked for, "
                            f"which begins {start}: it is no OpenAI-style server that streams, or "
                            "base_url is another"
                        )
                    yield response.content
                finally:
                    # Read to its end or not: whoever waits for more must not, and a server
                    # notices a stop by this.
                    if not response.content.is_eof():
                        response.close()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            failure = self._failure(error, url, begun)
        if failure is not None:  # Out here it has no context, which would have the headers.
            raise failure

    async def get(self, path: str) -> tuple[int, str]:
        """The status and text of what is answered at once.

        `path` may be a whole address, which neither key nor headers are sent to.

        Raises:
            Passing: the server cannot be reached.
            EngineError: it answers without end.
        """
        import aiohttp

        whole = "://" in path
        url, headers = (path, {}) if whole else (self.base_url + path, self._headers)
        options: Any = {"allow_redirects": False, "timeout": aiohttp.ClientTimeout(total=_SHORT)}
        begun = False
        try:
            async with self._opened().get(url, headers=headers, **options) as response:
                begun = True
                content = await _start(response, _MOST + 1)
                if len(content) > _MOST:
                    raise EngineError(f"{url} answers with more than {_MOST >> 20} MiB")
                return response.status, content.decode("utf-8", "replace")
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            failure = self._failure(error, url, begun)
        raise failure

    def redacted(self, text: str) -> str:
        """A text without the secrets that a server repeats in it."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text

    def quoted(self, words: str | bytes) -> str:
        """A server's own words for a message, without secrets that it repeats."""
        text = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
        text = " ".join(self.redacted(text).split())
        return repr(text[:_WORDS] + ("…" if len(text) > _WORDS else ""))

    async def _refusal(self, response: aiohttp.ClientResponse, url: str) -> EngineError:
        """What to raise where the status is not 200."""
        status = response.status
        if 300 <= status < 400:
            where = response.headers.get("Location", "nowhere")
            return EngineError(
                f"{url} redirects to {self.quoted(where)}, which is not followed, as the key "
                "would go there: give the address itself as base_url"
            )
        said = self.quoted(_error_text(await _start(response)))
        if status in PASSING:
            after = _retry_after(response.headers.get("Retry-After"))
            return Passing(f"{url}: status {status}: {said}", after=after, busy=status in BUSY)
        hint = ""
        if status in (401, 403):
            given = "Authorization" in self._headers
            hint = ": it does not take this API key" if given else ": it wants an API key"
        elif status in (404, 405):
            hint = ": is base_url right? It often ends in /v1"
        return Refused(f"{url}: status {status}: {said}{hint}", status)

    def _failure(self, error: Exception, url: str, begun: bool) -> EngineError:
        """What the client library raises, in our words.

        Args:
            error: what it raised.
            url: where.
            begun: whether an answer had begun; else nothing was generated.
        """
        import aiohttp

        where, said = _place(url), self.redacted(_short(error))[:_WORDS]
        if _errno(error) in (errno.EMFILE, errno.ENFILE):
            return Passing(
                f"{where}: this process can open no more connections ({said}): raise `ulimit -n`, "
                "or set a lower `concurrency`",
                busy=True,
            )
        if isinstance(error, ssl.SSLError | aiohttp.ClientSSLError):
            return EngineError(
                f"{where}: TLS fails: {said}: is it https, and its certificate one that this "
                "machine trusts (SSL_CERT_FILE names further ones)?"
            )
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return Passing(f"{where}: there is no such host: {said}", away=True)
        if isinstance(error, aiohttp.ClientConnectorError):
            return Passing(f"{where} cannot be reached: {said}", away=True)
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            within = f"within {self._connect_timeout:g} seconds"
            return Passing(f"{where} does not take a connection {within}", away=True)
        if isinstance(error, asyncio.TimeoutError | TimeoutError):
            return Passing(f"{where}: no answer in time", refused=not begun)
        if isinstance(error, aiohttp.ServerDisconnectedError):
            what = "closed the connection without an answer"
            return Passing(f"{where} {what}", refused=not begun)
        if isinstance(error, aiohttp.ClientResponseError):
            said = self.quoted(str(error.message))
            return EngineError(f"{where} does not speak HTTP as it should: {said}")
        if isinstance(error, aiohttp.ClientPayloadError):
            return Passing(f"{where}: the stream was cut: {said}")
        return Passing(f"{where}: the connection broke: {said}", refused=not begun)


async def _start(response: aiohttp.ClientResponse, most: int = 16 << 10) -> bytes:
    """As much of an answer as that, or all of it."""
    content = b""
    while len(content) < most and not response.content.at_eof():
        content += await response.content.readany()
    return content[:most]


def checked_url(base_url: str) -> str:
    """The address without a slash at its end.

    Raises:
        InvalidInput: it is none, or has secrets in it.
        InvalidType: it is no string.
    """
    if not isinstance(base_url, str):
        raise InvalidType(f"base_url is a {type(base_url).__name__}: must be a string")
    shown = "" if "@" in base_url else f"={base_url!r}"  # It may have a password in it.
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        parts = None
    if parts is None:
        raise InvalidInput(f"base_url{shown}: is no address: its host or port cannot be")
    if "@" in parts.netloc:
        raise InvalidInput(
            "base_url: has a name or password in it, which would be in every message: set api_key"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InvalidInput(f"base_url{shown}: must be an address such as http://localhost:8000/v1")
    if parts.query or parts.fragment:
        raise InvalidInput("base_url: has a ? or # in it: must end with the path, such as /v1")
    if any(ord(letter) <= 32 or ord(letter) == 127 for letter in base_url):
        raise InvalidInput(f"base_url{shown}: has a space or control character in it")
    return base_url.rstrip("/")


def _checked_key(key: Any) -> str:
    if not isinstance(key, str):
        raise InvalidType(f"api_key is a {type(key).__name__}: must be a string")
    if not key.strip():
        raise InvalidInput("api_key is empty: leave it out where the server wants none")
    if not all(33 <= ord(letter) < 127 for letter in key):
        raise InvalidInput(
            "api_key has a space, a line end or a letter that is not ASCII in it, which no header "
            "can hold"
        )
    return key


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidType("headers: must be strings by names")
        if not name.isascii() or not name.replace("-", "").isalnum():
            raise InvalidInput(f"headers: {name!r} is no name of a header")
        if not all(32 <= ord(letter) < 127 for letter in value):
            raise InvalidInput(f"headers[{name!r}] has a letter that no header can hold")
    return dict(headers)


def _error_text(content: bytes) -> str:
    """The message of an error, however it is wrapped."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace")
    for name in ("error", "detail", "message"):
        while isinstance(found, dict) and name in found:
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, given as such or as a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), 3600.0) if seconds == seconds else None


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _short(error: BaseException) -> str:
    """What an exception says, without its `repr`, which may have headers in it."""
    return " ".join(str(error).split()) or type(error).__name__


def _errno(error: Exception) -> int | None:
    """The operating system's, where it is behind it."""
    return getattr(getattr(error, "os_error", error), "errno", None)


def _secrets(values: Iterable[str]) -> list[str]:
    """What of these is in no message: each as a whole, and its parts but for a scheme's name."""
    parts = {part for value in values for part in (value, *value.split())}
    kept = {part for part in parts if len(part) >= _SECRET and part.lower() != "bearer"}
    kept |= {json.dumps(part)[1:-1] for part in kept}  # As it looks in an answer.
    return sorted(kept, key=len, reverse=True)
