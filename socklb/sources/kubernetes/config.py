# SPDX-License-Identifier: MIT
"""Where the API server is, and how one proves who one is: a pod's service account, or a kubeconfig file.

A kubeconfig is read once; the files of tokens, keys and certificates at each connect, for they are replaced while one
runs. What they hold is in no message and no repr.
"""

from __future__ import annotations

import os
import re

from ...features import standard_module
from .memory_file import memory_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPSConnection
    from typing import Any, NoReturn

_WANTED_BY = "--source kubernetes"
_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_PRINTED = "`kubectl config view --raw --flatten --minify -o json`"
_LEFT_OUT = ("REDACTED", "DATA+OMITTED")  # what kubectl prints without --raw
_LARGEST = 1 << 20
_LONGEST_QUOTE = 60
_LONGEST_URL = 1000

_NAME = r"[\w-]{1,63}(?:\.[\w-]{1,63}){0,15}\.?"
_SERVER = re.compile(
    rf"https://(?P<host>{_NAME}|\[[\da-f:.]+\])(?::(?P<port>\d{{1,5}}))?(?P<prefix>(?:/[\w.~!$&'()*+,;=:@%-]+)*)/?",
    re.ASCII | re.IGNORECASE,
)
_SERVER_NAME = re.compile(rf"{_NAME}|[\da-f:.]+", re.ASCII | re.IGNORECASE)
_TOKEN = re.compile(rb"[!-~]+")
_PARTIAL_CHAIN = 0x80000  # X509_V_FLAG_PARTIAL_CHAIN, which the ssl of Python 3.9 has no name for

_INSTEAD = "use token, tokenFile, or client-certificate and client-key"
_REFUSED = {
    "insecure-skip-tls-verify": "give the CA (certificate-authority-data), and tls-server-name if the name is another",
    "proxy-url": "the API server has to be reachable directly",
    "exec": f"no program is run to log in; {_INSTEAD}",
    "auth-provider": f"no program is run to log in; {_INSTEAD}",
    "username": f"API servers take no passwords any more; {_INSTEAD}",
    "password": f"API servers take no passwords any more; {_INSTEAD}",
    "as": "give the credentials of the user that is to be impersonated",
}


class AccessProblem(ValueError):
    """What access needs is missing or of no use: a file, a token, a certificate. It may be better at the next try."""


class _Content:
    """What is in a file, which may be replaced, or was given as data; `name` is what messages call it."""

    def __init__(self, name: str, path: str = "", data: bytes = b"") -> None:
        self.name, self._path, self._data = name, path, data

    def read(self) -> bytes:
        content = _read(self._path, self.name, _open) if self._path else self._data
        if not content.strip():
            raise AccessProblem(f"{self.name} is empty")
        return content


class Access:
    """An API server, and the credentials for it.

    `url` is for messages, and so is `credentials`; `prefix` comes before the path of each request ("" mostly);
    `identity` is a stable text for this cluster: its address and CA. Raises AccessProblem for what cannot be used.
    """

    def __init__(
        self,
        url: str,
        where: str,
        ca: _Content | None,
        *,
        token: _Content | None = None,
        client: tuple[_Content, _Content] | None = None,
        server_name: str = "",
    ) -> None:
        match = _SERVER.fullmatch(url)
        if match is None or not 0 < int(match["port"] or 443) < 1 << 16 or len(url) > _LONGEST_URL:
            if url.startswith("http:"):
                raise AccessProblem(f"{where} is not https: credentials must not travel in the clear")
            raise AccessProblem(f"{where} is not https://HOST[:PORT][/PATH]")
        if server_name and not _SERVER_NAME.fullmatch(server_name):
            raise AccessProblem(f"{where} has a tls-server-name that is no name: {_quoted(server_name)}")
        self.url, self.prefix = url.rstrip("/"), match["prefix"]
        self._host, self._port = match["host"].strip("[]"), int(match["port"] or 443)
        self._server_name = server_name or self._host
        self._ca, self._token, self._client = ca, token, client
        given = [one.name for one in (token, client and client[0]) if one]
        self.credentials = " and ".join(given) or "no token and no client certificate"
        trusted = standard_module("hashlib", _WANTED_BY).sha256(ca.read()).hexdigest() if ca else "system"
        self.identity = f"{self.url} {trusted}"
        self.headers()
        self._context()

    def __repr__(self) -> str:
        return f"<Access to {self.url}>"

    def headers(self) -> dict[str, str]:
        """What a request carries to be let in. Raises AccessProblem."""
        if self._token is None:
            return {}
        token = self._token.read().strip()
        if not _TOKEN.fullmatch(token):
            raise AccessProblem(f"{self._token.name} has white space in it, or other characters that no token has")
        return {"Authorization": f"Bearer {token.decode('ascii')}"}

    def connect(self, timeout: float) -> HTTPSConnection:
        """An open connection; once it is closed, it does not open again by itself: files may have been replaced.

        Raises AccessProblem, for an API server that is not the right one too, and OSError.
        """
        ssl = standard_module("ssl", _WANTED_BY)
        client = standard_module("http.client", _WANTED_BY).client
        context = self._context()
        connection: HTTPSConnection = client.HTTPSConnection(self._host, self._port, timeout=timeout, context=context)
        connection.auto_open = 0
        try:
            client.HTTPConnection.connect(connection)  # HTTPSConnection's own asks for the name in the URL
            connection.sock = context.wrap_socket(connection.sock, server_hostname=self._server_name)
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message.rstrip(".")
            raise AccessProblem(
                f"the certificate of {self.url} is refused: {reason}; it has to be for {self._server_name}, and "
                f"vouched for by {self._ca.name if self._ca else 'the CAs of this system, for no other is given'}"
            ) from None
        return connection

    def _context(self) -> Any:
        ssl = standard_module("ssl", _WANTED_BY)
        try:
            # The comments between certificates need not be ASCII. No data at all would stand for the system's CAs.
            context = ssl.create_default_context(
                cadata=self._ca and self._ca.read().decode("ascii", "backslashreplace")
            )
        except ssl.SSLError:
            raise AccessProblem(f"{self._ca and self._ca.name} is no PEM certificate, or not whole") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # As in kubectl, the CA may be an intermediate one, which OpenSSL refuses by default, and needs neither a key
        # identifier nor a key usage, which CPython 3.13 asks for by default and the CAs of many clusters lack.
        context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST | _PARTIAL_CHAIN
        if self._client is not None:
            self._load_client(context, *self._client)
        return context

    @staticmethod
    def _load_client(context: Any, certificate: _Content, key: _Content) -> None:
        ssl = standard_module("ssl", _WANTED_BY)

        def refuse() -> NoReturn:  # or OpenSSL would ask at the terminal
            raise AccessProblem(f"{key.name} is encrypted: a key without a passphrase is needed")

        try:
            with memory_file(certificate.read()) as certificate_path, memory_file(key.read()) as key_path:
                context.load_cert_chain(certificate_path, key_path, password=refuse)
        except ssl.SSLError:
            raise AccessProblem(f"{certificate.name} and {key.name} are no PEM certificate and its own key") from None
        except OSError as error:
            reason = f"cannot be handed to TLS in memory: {error.strerror}"
            raise AccessProblem(f"{key.name} {reason}; a token needs no such file") from None


def in_cluster(directory: str = _SERVICE_ACCOUNT) -> Access:
    """That of a pod's service account. Raises ValueError outside a cluster, AccessProblem, NotSupported."""
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host or not port:
        raise ValueError(
            "this is no pod of a Kubernetes cluster (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not both "
            "set): name its API server with --kubeconfig FILE"
        )
    token, ca = (os.path.join(directory, name) for name in ("token", "ca.crt"))
    return Access(
        f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        "what KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT make",
        _Content(f"the CA in {ca}", ca),
        token=_Content(f"the token in {token}", token),
    )


def from_kubeconfig(path: str | os.PathLike[str]) -> Access:
    """That of a kubeconfig file in JSON. Raises AccessProblem, NotSupported."""
    path = os.path.abspath(os.fsdecode(path))
    config = _Section(_parsed(path), path, os.path.dirname(path))
    context = config.entry("context", config.text("current-context") or config.only("context"))
    cluster = config.entry("cluster", context.text("cluster"))
    user = config.entry("user", context.text("user")) if context.text("user") else _Section({}, path, "")
    certificate, key = user.content("client-certificate"), user.content("client-key")
    if bool(certificate) != bool(key):
        raise AccessProblem(f"{user.where} has one of client-certificate and client-key without the other")
    return Access(
        cluster.text("server"),
        f"the server of {cluster.where}",
        cluster.content("certificate-authority"),
        token=user.file("tokenFile") or user.secret("token"),
        client=(certificate, key) if certificate and key else None,
        server_name=cluster.text("tls-server-name"),
    )


class _Section:
    """An object of a kubeconfig; `where` is what messages call it, relative paths are from the directory."""

    def __init__(self, members: object, where: str, directory: str) -> None:
        if not isinstance(members, dict):
            raise AccessProblem(f"{where} is no JSON object")
        for name, advice in _REFUSED.items():
            if members.get(name):
                raise AccessProblem(f"{where} has {name}, which is not supported: {advice}")
        self.where, self._members, self._directory = where, members, directory

    def text(self, name: str) -> str:
        value = self._members.get(name)
        if value is not None and not isinstance(value, str):
            raise AccessProblem(f"the {name} of {self.where} is no string")
        if value in _LEFT_OUT:
            raise AccessProblem(f"the {name} of {self.where} was left out by kubectl: print it with --raw, {_PRINTED}")
        return value or ""

    def entry(self, kind: str, name: str) -> _Section:
        """The one of this name in the list of its kind."""
        for one in self._entries(kind):
            if one.text("name") == name:
                return _Section(
                    one._members.get(kind) or {}, f"the {kind} {_quoted(name)} of {self.where}", self._directory
                )
        raise AccessProblem(f"{self.where} has no {kind} {_quoted(name)}")

    def only(self, kind: str) -> str:
        """The name of the only one of a kind."""
        names = [one.text("name") for one in self._entries(kind)]
        if not names:
            raise AccessProblem(f"{self.where} has no {kind}s: print one that leads to a cluster by {_PRINTED}")
        if len(names) > 1:
            raise AccessProblem(
                f"{self.where} has no current-{kind}, and {len(names)} {kind}s; print one by {_PRINTED}"
            )
        return names[0]

    def _entries(self, kind: str) -> list[_Section]:
        entries = self._members.get(f"{kind}s") or []
        if not isinstance(entries, list):
            raise AccessProblem(f"the {kind}s of {self.where} are no list")
        return [_Section(entry, f"one of the {kind}s of {self.where}", self._directory) for entry in entries]

    def content(self, name: str) -> _Content | None:
        """Given as data, or in a file."""
        data = self.text(f"{name}-data")
        if not data:
            return self.file(name)
        called = f"the {name}-data of {self.where}"
        try:
            decoded = standard_module("base64", _WANTED_BY).b64decode("".join(data.split()), validate=True)
        except ValueError:
            raise AccessProblem(f"{called} is not base64") from None
        return _Content(called, data=decoded)

    def file(self, name: str) -> _Content | None:
        path = self.text(name)
        if not path:
            return None
        return _Content(f"the {name} {_quoted(path)} of {self.where}", os.path.join(self._directory, path))

    def secret(self, name: str) -> _Content | None:
        value = self.text(name)
        return _Content(f"the {name} of {self.where}", data=value.encode("utf-8", "surrogatepass")) if value else None


def _parsed(path: str) -> object:
    try:
        return standard_module("json", _WANTED_BY).loads(_read(path, path))
    except (RecursionError, ValueError) as error:
        if isinstance(error, AccessProblem):
            raise
        raise AccessProblem(f"{path} is not JSON ({error}): print it with {_PRINTED}") from None


def _read(path: str, name: str, opener: Callable[[str, int], int] | None = None) -> bytes:
    try:
        with open(path, "rb", opener=opener) as file:
            content = file.read(_LARGEST + 1) or b""  # None: of a pipe that somebody else is about to write to
    except (OSError, ValueError) as error:  # ValueError: a NUL
        reason = error.strerror if isinstance(error, OSError) else "no path looks like that"
        raise AccessProblem(f"{name} cannot be read: {reason}") from None
    if len(content) > _LARGEST:
        raise AccessProblem(f"{name} is larger than {_LARGEST >> 20} MiB")
    return content


def _open(path: str, flags: int) -> int:
    """What has been put in the place of a file is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "...")
