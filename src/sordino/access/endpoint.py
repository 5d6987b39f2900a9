"""Answers from a server: any endpoint of chat completions in OpenAI's format.

The records of the questions are sent to the server, so it must be one that may see them. The key
comes from the environment and is shown nowhere: not in an error, not in a record, not in a log. It
is sent to the named server alone, and only through TLS unless the server is this machine, which is
asked without a proxy. Neither redirects nor credentials that lie on this machine (.netrc) are used.
"""

from __future__ import annotations

import ipaddress
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sordino.core.checks import require_integer, require_positive
from sordino.core.errors import InvalidParameterError, ModelUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import requests

KEY_VARIABLE = "SORDINO_ENDPOINT_KEY"
_PATH = "/chat/completions"
_RETRIED = (408, 429, 500, 502, 503, 504)
_NO_PROXY = {"no_proxy": "*"}  # what is for this machine never leaves it in clear
_LONGEST_WAIT = 60.0  # seconds between two tries


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A server and how to ask it.

    Args:
        url: Base of the interface, such as "http://localhost:8000/v1".
        model: The model's name there.
        max_new_tokens: Longest answer.
        concurrency: Requests under way at a time.
        timeout: Seconds without an answer after which a request has failed.
        num_tries: Of each request; busy and failing servers are asked again, after a while.
        backoff: Seconds before the second try; each further wait is twice as long.
        key: Sent as bearer token; None sends none.

    Raises:
        InvalidParameterError: If the address is none, a number is out of range, or a key would go
            over the network unencrypted.
    """

    url: str
    model: str
    max_new_tokens: int = 96
    concurrency: int = 4
    timeout: float = 120.0
    num_tries: int = 5
    backoff: float = 1.0
    key: str | None = field(
        default_factory=lambda: os.environ.get(KEY_VARIABLE) or None, repr=False
    )

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidParameterError(
                "endpoint must be an address such as http://localhost:8000/v1, got "
                f"{_without_credentials(self.url)!r}."
            )
        if parts.username is not None or parts.password is not None:
            raise InvalidParameterError(
                f"endpoint must not hold a password. Put the key into {KEY_VARIABLE}."
            )
        if not self.model.strip():
            raise InvalidParameterError(
                "endpoint_model must name the model that the server is asked for, got nothing."
            )
        if self.key is not None and parts.scheme == "http" and not _is_here(parts.hostname):
            raise InvalidParameterError(
                f"endpoint {self.url} must begin with https:// where {KEY_VARIABLE} is set: the "
                "key would be readable on the way."
            )
        if self.key is not None and not self.key.isascii():
            raise InvalidParameterError(f"{KEY_VARIABLE} must hold ASCII characters only.")
        require_integer("max_new_tokens", self.max_new_tokens, 1)
        require_integer("concurrency", self.concurrency, 1, 64)
        require_positive("timeout", self.timeout)
        require_integer("num_tries", self.num_tries, 1, 20)
        require_positive("backoff", self.backoff)

    @property
    def address(self) -> str:
        """Where requests go."""
        base = self.url.rstrip("/")
        return base if base.endswith(_PATH) else base + _PATH


def ask_all(
    endpoint: Endpoint, conversations: Sequence[Sequence[dict[str, str]]]
) -> Iterator[tuple[int, str]]:
    """Yields the number of each conversation and the model's answer, as they come.

    Reasoning that a server hands over apart stands before the answer, in <think>. An answer that
    the server cut at the longest length is an answer.

    Args:
        endpoint: Whom to ask.
        conversations: Messages of each.

    Raises:
        ModelUnavailableError: If the server cannot be reached, keeps failing, refuses, or answers
            in another format. Requests not yet begun are given up.
    """
    with _session(endpoint) as session, ThreadPoolExecutor(endpoint.concurrency) as pool:
        waiting = {
            pool.submit(_ask, endpoint, session, list(messages)): number
            for number, messages in enumerate(conversations)
        }
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            for future in waiting:
                future.cancel()


def _session(endpoint: Endpoint) -> requests.Session:
    """Returns connections that try again; they are shared by the threads."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    session = requests.Session()
    retry = Retry(
        total=endpoint.num_tries - 1,
        backoff_factor=endpoint.backoff,
        backoff_max=_LONGEST_WAIT,
        status_forcelist=_RETRIED,
        allowed_methods=["POST"],
        respect_retry_after_header=True,
        raise_on_status=False,
    )
    adapter = HTTPAdapter(max_retries=retry, pool_maxsize=endpoint.concurrency)
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


def _ask(endpoint: Endpoint, session: requests.Session, messages: list[dict[str, str]]) -> str:
    """Returns one answer."""
    import requests

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if endpoint.key is not None:
            request.headers["Authorization"] = f"Bearer {endpoint.key}"
        return request

    try:
        response = session.post(
            endpoint.address,
            json={
                "model": endpoint.model,
                "messages": messages,
                "temperature": 0,
                "max_tokens": endpoint.max_new_tokens,
                "stream": False,
            },
            auth=authorize,  # also keeps .netrc out
            timeout=endpoint.timeout,
            allow_redirects=False,
            proxies=_NO_PROXY if _is_here(urlsplit(endpoint.address).hostname or "") else None,
        )
    except (requests.RequestException, OSError) as error:
        raise ModelUnavailableError(
            f"Endpoint {endpoint.url}: no answer after {endpoint.num_tries} tries "
            f"({type(error).__name__}). Check the address and whether the server is running."
        ) from None
    if response.status_code != requests.codes.ok:  # its text may repeat the key: not shown
        raise ModelUnavailableError(
            f"Endpoint {endpoint.url}: the server answered {response.status_code}. "
            + _remedy(response.status_code)
        )
    try:
        return _read_answer(response.json())
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ModelUnavailableError(
            f"Endpoint {endpoint.url}: the answer is not a chat completion. Check that the "
            "address is the base of an OpenAI-compatible interface; it often ends in /v1."
        ) from None


def _read_answer(body: Any) -> str:
    """Returns all text of a completion that a user would read."""
    message = body["choices"][0]["message"]
    content = message.get("content")
    if content is None:
        content = message.get("refusal") or ""
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    if not isinstance(content, str) or not isinstance(thought, str):
        raise TypeError
    return f"<think>{thought}</think>{content}" if thought else content


def _remedy(status: int) -> str:
    """Returns what to do about a status."""
    if status in {401, 403}:
        return f"Put a valid key into the environment variable {KEY_VARIABLE}."
    if status == 404:
        return "Check the address and the model's name."
    if status in _RETRIED:
        return "It kept failing: repeat the command later; answers so far are kept."
    return "Check the address, the model's name, and whether the prompt fits into its context."


def _is_here(host: str) -> bool:
    """Returns whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_credentials(url: str) -> str:
    """Returns an address without what stands before "@"."""
    return url.rpartition("@")[2]
