"""Where a download may lead: http(s), nobody's password, and no address inside a private network."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, TypeAlias

from .._transport import parse_url

if TYPE_CHECKING:
    from collections.abc import Iterable

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What is another protocol's business, or another network's, though Python's tables call it global.
_LOCAL = (
    ipaddress.IPv4Network("192.0.0.0/24"),
    ipaddress.IPv4Network("192.88.99.0/24"),
    ipaddress.IPv6Network("3fff::/20"),
    ipaddress.IPv6Network("5f00::/16"),
)


def is_public(text: str) -> bool:
    """Say whether an address is one of the internet's; False for what is no address in its usual notation.

    One in IPv6 that carries an IPv4 address is none, except for a translator's (NAT64), which is what the
    address in it is.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
        if address.ipv4_mapped or address.sixtofour or address.teredo or address.is_site_local:
            return False
    refused = address.is_private or address.is_reserved or address.is_multicast or not address.is_global
    return not refused and not any(address in network for network in _LOCAL)


def is_private_home(host: str, addresses: Iterable[str]) -> bool:
    """Say whether the API itself is inside a private network.

    Args:
        host: as its URL has it.
        addresses: what its name leads to; none where that is unknown.
    """
    literal = _literal(host)
    found = [*addresses] if literal is None else [str(literal)]
    return _is_local_name(host) or any(not is_public(address) for address in found)


def why_not(text: str, *, came_from: str | None, private: bool) -> str | None:  # noqa: PLR0911 - a table
    """Say why a URL is not to be fetched, as far as it shows by itself; None where it may be.

    Args:
        text: the URL.
        came_from: the URL that redirects to it; None: none does.
        private: whether private addresses are allowed.
    """
    # Control characters would be left out silently, and make another URL of it.
    if any(char < " " or char == "\x7f" for char in text):
        return "its URL has control characters in it"
    try:
        url = parse_url(text)
        host, port = url.host, url.port
    except ValueError:
        return "its URL is none"
    if url.scheme not in {"http", "https"} or not host or not port:
        return "its URL is not http:// or https:// and a host"
    if url.user is not None or url.password is not None:
        return "its URL has a user or a password in it"
    if came_from is not None and url.scheme == "http" and parse_url(came_from).scheme == "https":
        return "it is redirected from https:// to http://"
    if private:
        return None
    literal = _literal(host)
    if _is_local_name(host) or (literal is not None and not is_public(str(literal))):
        return "its URL leads to a private address, which takes allow_private=True"
    return None


def host_of(text: str) -> str | None:
    """Give a URL's host for a message; None where it has none that can be read."""
    try:
        return parse_url(text).host
    except ValueError:
        return None


def _is_local_name(host: str) -> bool:
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def _literal(host: str) -> _Address | None:
    """Give the address that a host stands for without a look-up, in whatever notation."""
    host = host.rstrip(".")
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        # Takes what connecting would take: 0x7f.1, 2130706433, 0177.0.0.1.
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None
