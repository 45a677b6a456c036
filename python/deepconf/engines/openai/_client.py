"""HTTP: connections to one server, and what can go wrong with them, in our words.

The key is in no message, and no exception of the client library, which has all headers in its
`repr`, is handed on. Redirects are not followed, so nothing sends the key anywhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import importlib.util
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deepconf.errors import EngineError, InvalidInput, InvalidType, MissingExtra

if TYPE_CHECKING:
    import aiohttp

__all__ = ["PASSING", "Client", "Passing", "Refused", "checked_url"]

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
# What another try may mend: too early, too many requests, a proxy without its server.
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504, 529))


class Passing(EngineError):
    """A failure that another try may mend.

    Args:
        message: what happened.
        after: seconds to wait before, where the server says so.
        away: whether there was no server at all.
        refused: whether it was refused before anything was generated.
    """

    def __init__(
        self,
        message: str,
        *,
        after: float | None = None,
        away: bool = False,
        refused: bool = False,
    ) -> None:
        self.after = after
        self.away = away
        self.refused = refused or away
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
    """Connections to one server, as many as are asked for at once.

    Args:
        base_url: where its interface begins, such as `http://localhost:8000/v1`.
        api_key: sent as a bearer token.
        headers: further headers of every request.
        connect_timeout: seconds to connect.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        headers: Mapping[str, str],
        connect_timeout: float,
    ) -> None:
        for package in ("aiohttp", "msgspec"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtra("http", package)
        self.base_url = checked_url(base_url)
        # A server that compresses keeps tokens back.
        self._headers = {"Accept-Encoding": "identity", **_checked_headers(headers)}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {_checked_key(api_key)}"
        given = (api_key, *headers.values())
        self._secrets = [value for value in given if value and len(value) >= _SECRET]
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
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE),
                headers=self._headers,
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
        url = self.base_url + path
        headers = {"Accept": "text/event-stream"}
        with self._failing(url):
            async with self._opened().post(
                url, json=dict(body), headers=headers, allow_redirects=False
            ) as response:
                try:
                    if response.status != 200:
                        raise await self._refusal(response, url)
                    if response.content_type != "text/event-stream":
                        start = await _start(response)
                        raise EngineError(
                            f"{url} answers with {response.content_type} where a stream of events "
                            f"was asked for, which begins {self.quoted(start)}: it is no "
                            "OpenAI-style server that streams, or base_url is another"
                        )
                    yield response.content
                finally:
                    # Read to its end or not: whoever waits for more must not, and a server
                    # notices a stop by this.
                    if not response.content.is_eof():
                        response.close()

    async def get(self, path: str) -> tuple[int, str]:
        """The status and text of what is answered at once; `path` may be a whole address.

        Raises:
            Passing: the server cannot be reached.
            EngineError: it answers without end.
        """
        url = path if "://" in path else self.base_url + path
        import aiohttp

        whole = aiohttp.ClientTimeout(total=_SHORT)
        with self._failing(url):
            async with self._opened().get(url, allow_redirects=False, timeout=whole) as response:
                content = await _start(response, _MOST + 1)
                if len(content) > _MOST:
                    raise EngineError(f"{url} answers with more than {_MOST >> 20} MiB")
                return response.status, content.decode("utf-8", "replace")
        raise AssertionError

    def quoted(self, words: str | bytes) -> str:
        """A server's own words for a message, without secrets that it repeats."""
        text = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        text = " ".join(text.split())
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
            refused = status != 500
            return Passing(f"{url}: status {status}: {said}", after=after, refused=refused)
        hint = ""
        if status in (401, 403):
            given = "Authorization" in self._headers
            hint = ": it does not take this API key" if given else ": it wants an API key"
        elif status in (404, 405):
            hint = ": is base_url right? It often ends in /v1"
        return Refused(f"{url}: status {status}: {said}{hint}", status)

    @contextlib.contextmanager
    def _failing(self, url: str) -> Any:
        """What the client library raises, in our words."""
        import aiohttp

        where = _place(url)
        try:
            yield
        except (ssl.SSLError, aiohttp.ClientSSLError) as error:
            raise EngineError(
                f"{where}: TLS fails: {_short(error)}: is it https, and its certificate one that "
                "this machine trusts (SSL_CERT_FILE names further ones)?"
            ) from None
        except aiohttp.ClientConnectorDNSError as error:
            raise Passing(f"{where}: there is no such host: {_short(error)}", away=True) from None
        except aiohttp.ClientConnectorError as error:
            raise Passing(f"{where} cannot be reached: {_short(error)}", away=True) from None
        except aiohttp.ConnectionTimeoutError:
            raise Passing(
                f"{where} does not take a connection within {self._connect_timeout:g} seconds",
                away=True,
            ) from None
        except (asyncio.TimeoutError, TimeoutError):
            raise Passing(f"{where}: no answer in time") from None
        except aiohttp.ServerDisconnectedError:
            raise Passing(f"{where} closed the connection without an answer") from None
        except aiohttp.ClientResponseError as error:
            said = self.quoted(str(error.message))
            raise EngineError(f"{where} does not speak HTTP as it should: {said}") from None
        except aiohttp.ClientPayloadError as error:
            raise Passing(f"{where}: the stream was cut: {_short(error)}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Passing(f"{where}: the connection broke: {_short(error)}") from None


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
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError as error:
        raise InvalidInput(f"base_url: is no address: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(
            "base_url: has a name or password in it, which would be in every message: set api_key"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InvalidInput(
            f"base_url={base_url!r}: must be an address such as http://localhost:8000/v1"
        )
    if parts.query or parts.fragment:
        raise InvalidInput("base_url: has a ? or # in it: must end with the path, such as /v1")
    if any(ord(letter) <= 32 or ord(letter) == 127 for letter in base_url):
        raise InvalidInput(f"base_url={base_url!r}: has a space or control character in it")
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
    return " ".join(str(error).split())[:200] or type(error).__name__
