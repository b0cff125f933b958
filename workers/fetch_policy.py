"""How far a URL may send task code: which addresses, how many bytes, how long.

Allowed are public addresses, and what the operator admits. The standard library's ``is_global`` says yes to
NAT64 and 6to4 wrappings of private addresses, to multicast and to some clouds' metadata services, so the
rule is our own. IPv4: everything but a fixed list. IPv6: the global block only, less the parts of it that
wrap or document. An IPv6 address that stands for an IPv4 one is judged as that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from eventq.events.errors import InvalidInput

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_DENIED_V4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # the metadata service of one cloud, inside a public block
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_DENIED_V6 = tuple(IPv6Network(block) for block in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """How far a fetch may go. ``admitted``: private networks that are allowed besides the public internet.

    ``max_wire_bytes`` counts what arrives, ``max_bytes`` what it inflates to. ``min_rate`` (bytes per
    second) is asked of every ``rate_window_s`` seconds. Times in seconds.
    """

    admitted: tuple[Network, ...] = ()
    max_redirects: int = 3
    max_wire_bytes: int = 1024**3
    max_bytes: int = 1024**3
    total_s: float = 300.0
    connect_s: float = 5.0
    read_s: float = 10.0
    min_rate: float = 256.0
    rate_window_s: float = 10.0


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks from CIDR texts such as ``10.1.0.0/16``. Raises :class:`InvalidInput` naming the one that is
    none.
    """
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ip_network(text.strip()))
        except ValueError as error:
            raise InvalidInput("fetch_allow", f"is not a network: {error}", found=text[:80]) from None
    return tuple(networks)


def parse_address(text: str) -> Address:
    """The address that a socket is about to connect to; an IPv6 zone (``%eth0``) is left out."""
    return ip_address(text.partition("%")[0])


def is_allowed(address: Address, admitted: Sequence[Network] = ()) -> bool:
    """Whether a connection to ``address`` may be made: it is public, or lies in one of the ``admitted``
    networks.
    """
    address = _unwrapped(address)
    if any(address in network for network in admitted if network.version == address.version):
        return True
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _DENIED_V4)
    return address in _GLOBAL_V6 and not any(address in block for block in _DENIED_V6)


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that packets will reach. Other wrappings (6to4, Teredo, ...) are denied as they
    stand.
    """
    if isinstance(address, IPv6Address) and (address in _MAPPED or address in _NAT64):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
