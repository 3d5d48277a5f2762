"""Connections of aiohttp to addresses that a policy allows, and to no others.

The check is made on the very address that is connected to, so that a name that resolves to another
address a moment later gains nothing. Each redirect is a connection of its own and is checked too.
"""

import socket
from typing import Any

from aiohttp import TCPConnector, ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_reqrep import ClientRequest

from pipeline.storage.image_hosts import ImageHosts


class _CheckedResolver(ThreadedResolver):
    """Resolves names as the system does, and refuses those with an address that is not allowed."""

    def __init__(self, hosts: ImageHosts, resolver: AbstractResolver | None):
        super().__init__()
        self._hosts, self._resolver = hosts, resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        resolve = self._resolver.resolve if self._resolver else super().resolve
        found = await resolve(host, port, family)
        for one in found:
            self._hosts.check_address(one["host"], host, port)
        return found


class CheckedConnector(TCPConnector):
    """A connector for requests that strangers name.

    A request raises RefusedAddress before anything is sent to an address that is not allowed.
    """

    def __init__(
        self, hosts: ImageHosts, resolver: AbstractResolver | None = None, **options: Any
    ) -> None:
        """`resolver` resolves names instead of the system's resolver; what it says is checked."""
        super().__init__(resolver=_CheckedResolver(hosts, resolver), **options)
        self._hosts = hosts

    async def connect(self, req: ClientRequest, traces: Any, timeout: Any) -> Any:
        """Connect to the host of a request. aiohttp asks no resolver for numeric addresses."""
        self._hosts.check_literal(req.url.raw_host or "", req.url.port or 0)
        return await super().connect(req, traces, timeout)
