"""Find out within seconds whether a download can begin: every connection and name look-up has a time limit."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

LIMIT = 5.0  # seconds
PORTS = {"http": 80, "https": 443}


def within_limit(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return `function(*args, **kwargs)`, computed in a daemon thread.

    Raises:
        TimeoutError: it takes longer than `LIMIT` seconds; the thread is left to end by itself.
    """
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    try:
        return future.result(LIMIT)
    except Late:
        if future.done():  # the function itself timed out: since Python 3.11 both errors are one class
            raise
        raise TimeoutError(f"no answer in {LIMIT:g} seconds") from None


def check_reachable(url: str) -> None:
    """Connect to the server of `url`, or to the proxy that the environment names for it, and hang up.

    The verdict on a server is kept for the rest of the process.

    Raises:
        ConnectionError: there is no connection within `LIMIT` seconds.
    """
    host, port = _address(url)
    reason = _refusal(host, port)
    if reason:
        raise ConnectionError(f"{host} cannot be reached ({reason})")


def is_reachable(url: str) -> bool:
    """Whether `check_reachable` finds a connection."""
    try:
        check_reachable(url)
    except ConnectionError:
        return False
    return True


def limit_lookups() -> None:
    """Have name look-ups in this process fail after `LIMIT` seconds. Repeated calls have no effect.

    A resolver that does not answer takes 10 seconds or more for each name, and ultralytics looks up two as it is
    imported.
    """
    if getattr(socket.getaddrinfo, "__name__", "") == _limited_lookup.__name__:
        return
    socket.getaddrinfo = functools.partial(_limited_lookup, socket.getaddrinfo)
    socket.getaddrinfo.__name__ = _limited_lookup.__name__  # type: ignore[attr-defined]


def _limited_lookup(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return within_limit(original, *args, **kwargs)
    except TimeoutError as error:
        raise socket.gaierror(socket.EAI_AGAIN, str(error)) from None


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(host):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or host, parts.port or PORTS.get(parts.scheme, 443)


@functools.cache
def _refusal(host: str, port: int) -> str:
    """Why there is no connection; empty where there is one."""
    try:
        within_limit(socket.create_connection, (host, port), LIMIT).close()
    except OSError as error:  # TimeoutError among them
        return error.strerror or str(error) or type(error).__name__
    return ""
