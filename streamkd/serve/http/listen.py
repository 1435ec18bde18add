"""Opening the HTTP port: is this bind allowed, are the certificates good, is the port free; and saying where it is."""

import errno
import ipaddress
import os
import socket
import ssl
import tempfile
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TextIO

from streamkd.errors import ConfigError
from streamkd.serve.http import scratch
from streamkd.settings import Serve, Tls
from streamkd.streams.ingest.tokens import Tokens

PREFIX = "streamkd-serve-"
SOCKET_BYTES = 103  # of the path of a unix socket: 107 on Linux, 103 on others
LONGEST = PREFIX + "12345678/ingress.sock"


def check_ports(serve: Serve) -> None:
    """What of the ports can be said without opening them.

    Raises:
        ConfigError: they are open to others, their certificates cannot be used, or their tokens not be read.
    """
    check_exposure(serve)
    tls_arguments(serve.tls)
    Tokens(serve.tokens)


def check_exposure(serve: Serve) -> None:
    """Refuse an address that others can reach, unless there are TLS and tokens.

    Raises:
        ConfigError: the bind goes beyond loopback without both and without ``insecure``.
    """
    if serve.insecure or (serve.tls and serve.tokens) or is_loopback(serve.host):
        return
    missing = " and ".join(name for name, there in (("tls", serve.tls), ("tokens", serve.tokens)) if not there)
    raise ConfigError(
        f"{serve.host} can be reached from other machines; needed TLS and tokens, {missing} missing",
        where="serve.host",
        fix="set serve.tls and serve.tokens, bind 127.0.0.1, or take the risk with --insecure",
    )


def is_loopback(host: str) -> bool:
    """Whether every address of the host is this machine's alone."""
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, None)} if host else set()
    except OSError as fault:
        raise ConfigError(f"needed an address of this machine, got {host!r}: {fault}", where="serve.host") from None
    return bool(addresses) and all(ipaddress.ip_address(a.partition("%")[0]).is_loopback for a in addresses)


def tls_arguments(tls: Tls | None) -> dict[str, Any]:
    """TLS for uvicorn, after the files were found to fit each other.

    Raises:
        ConfigError: a file is missing or no certificate, or the key is another's.
    """
    if tls is None:
        return {}
    arguments: dict[str, Any] = {"ssl_certfile": str(tls.certificate), "ssl_keyfile": str(tls.key)}
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
            arguments |= {"ssl_ca_certs": str(tls.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    except (OSError, ValueError) as fault:
        raise ConfigError(
            f"the certificate cannot be used: {fault}",
            where="serve.tls",
            fix="name a PEM certificate and its key without password",
        ) from None
    return arguments


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 picks a free one.

    Raises:
        ConfigError: the port is taken or not allowed, or the address is not this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)  # here, so that a second server is refused now and not later
    except OSError as fault:
        bound.close()
        taken = fault.errno == errno.EADDRINUSE
        raise ConfigError(
            f"port {port} on {host} is taken" if taken else f"port {port} on {host} cannot be bound: {fault.strerror}",
            where="serve.port",
            fix=f"stop what listens there, or pick another: --port {port % 65535 + 1}, or --port 0 for any free one",
        ) from None
    return bound


def url_of(scheme: str, bound: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def runtime_folder() -> AbstractContextManager[Path]:
    """A folder for sockets that this user alone can enter, until the end of the block.

    Raises:
        ConfigError: no folder for temporary files has a path that is short enough for a socket.
    """
    usual = Path(tempfile.gettempdir())
    for above in (usual, Path("/tmp")):  # noqa: S108 - a folder of its own is made there, mode 0700
        if len(os.fsencode(above / LONGEST)) <= SOCKET_BYTES and os.access(above, os.W_OK):
            return scratch.folder(PREFIX, above)
    room = SOCKET_BYTES - len(LONGEST) - 1
    raise ConfigError(
        f"needed a folder for temporary files with a path of at most {room} bytes, got {usual}",
        where="TMPDIR",
        fix="set TMPDIR to a shorter path that this user may write to",
    )


def announce(text: str, stream: TextIO | None) -> None:
    """Print a line for whoever started the server; a reader that has gone away (``| head -1``) ends nothing."""
    if stream is None:  # it was closed before we started
        return
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):
        _to_nowhere(stream)


def _to_nowhere(stream: TextIO) -> None:
    """What is left in the buffer must not fail again when the interpreter ends: that would be exit code 120."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _no_password() -> str:
    raise ValueError("the key has a password")
