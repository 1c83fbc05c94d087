"""How the API server is reached: from a pod, or by a kubeconfig; what is wrong is said, and no secret with it."""

from __future__ import annotations

import base64
import copy
import http.client
import json
import os
import shutil
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import NotSupported
from socklb.sources.kubernetes.config import Access, AccessProblem, from_kubeconfig, in_cluster

from .api_server import PKI, TOKEN, ApiServer
from .endpoint_slices import API, Object
from .kubeconfigs import data_of, kubeconfig, written

SECRET = "s3cr3t"
ENCODED = base64.b64encode(SECRET.encode()).decode()
ENCRYPTED_KEY = f"""\
-----BEGIN RSA PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF

{ENCODED}
-----END RSA PRIVATE KEY-----
"""


def status_of(access: Access) -> int:
    """What a list is answered with."""
    connection = access.connect(30)
    try:
        connection.request("GET", f"{access.prefix}{API}/endpointslices", headers=access.headers())
        return connection.getresponse().status
    finally:
        connection.close()


def problem_of(directory: Path, config: Object) -> str:
    with pytest.raises(AccessProblem) as raised:
        from_kubeconfig(written(directory, config))
    return str(raised.value)


class TestInCluster:
    @pytest.fixture
    def account(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        shutil.copy(PKI / "ca.pem", tmp_path / "ca.crt")
        return tmp_path

    def test_the_address_comes_from_the_environment(self, account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert in_cluster(str(account)).url == "https://[fd00::1]:443"
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        assert in_cluster(str(account)).url == "https://10.0.0.1:443"
        monkeypatch.delenv("KUBERNETES_SERVICE_PORT")
        with pytest.raises(
            ValueError, match=r"no pod of a Kubernetes cluster .* name its API server with --kubeconfig"
        ):
            in_cluster(str(account))

    def test_the_token_is_read_anew_each_time(self, account: Path) -> None:
        access = in_cluster(str(account))
        for token in (TOKEN, "another"):
            (account / "token").write_text(token)
            assert access.headers() == {"Authorization": f"Bearer {token}"}
        (account / "token").unlink()
        with pytest.raises(AccessProblem, match=r"the token in /.*/token cannot be read: No such file"):
            access.headers()

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("token", b" \n", "the token in {} is empty"),
            ("token", b"s3cr3t s3cr3t", "the token in {} has white space in it, or other characters"),
            ("token", b"s3cr3t\xe9", "the token in {} has white space in it, or other characters"),
            ("token", b"s3cr3t" * (1 << 18), "the token in {} is larger than 1 MiB"),
            ("ca.crt", b"\n", "the CA in {} is empty"),
            ("ca.crt", b"s3cr3t", "the CA in {} is no PEM certificate, or not whole"),
            ("ca.crt", b"\xff\xfe", "the CA in {} is no PEM certificate, or not whole"),  # it is not left out
            ("ca.crt", None, "the CA in {} cannot be read: No such file or directory"),
        ],
    )
    def test_a_file_of_no_use(self, account: Path, name: str, content: bytes | None, message: str) -> None:
        path = account / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(AccessProblem) as raised:
            in_cluster(str(account))
        assert str(raised.value).startswith(message.format(path))
        assert SECRET not in repr(raised.value)

    def test_a_pipe_is_not_waited_for(self, account: Path) -> None:
        (account / "token").unlink()
        os.mkfifo(account / "token")
        with pytest.raises(AccessProblem, match="is empty"):
            in_cluster(str(account))

    def test_a_CA_with_comments_in_any_language(self, account: Path) -> None:  # noqa: N802
        (account / "ca.crt").write_text("# Türk\n" + (PKI / "ca.pem").read_text(), encoding="utf-8")
        assert in_cluster(str(account)).headers()

    def test_a_Python_without_ssl_is_told_which_package_it_lacks(  # noqa: N802
        self, account: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "ssl", None)
        with pytest.raises(NotSupported, match=r"--source kubernetes needs the module ssl, .*: the package python3"):
            in_cluster(str(account))


USER, CLUSTER = ("users", 0, "user"), ("clusters", 0, "cluster")
CA_DATA = "certificate-authority-data"
AT = "https://127.0.0.1:6443"

OF_USER, OF_CLUSTER = "of the user 'a-user' of {}", "of the cluster 'a-cluster' of {}"
NO_SERVER = f"the server {OF_CLUSTER} is not https://HOST[:PORT][/PATH]"
HAS = "the user 'a-user' of {} has"

BAD = [
    ((), [], "{} is no JSON object"),
    (("clusters",), "x", "the clusters of {} are no list"),
    (("users", 0), 7, "one of the users of {} is no JSON object"),
    (("current-context",), "another\x1b" * 99, "{} has no context 'another\\x1banother"),
    (("contexts", 0, "context", "cluster"), None, "{} has no cluster ''"),
    (("users",), None, "{} has no user 'a-user'"),
    (USER, [SECRET], "the user 'a-user' of {} is no JSON object"),
    (
        (*CLUSTER, "server"),
        f"http://admin:{SECRET}@host",
        f"the server {OF_CLUSTER} is not https: credentials must not",
    ),
    ((*CLUSTER, "server"), f"https://admin:{SECRET}@host", NO_SERVER),
    ((*CLUSTER, "server"), "https://host:0", NO_SERVER),
    ((*CLUSTER, "server"), "https://host:65536", NO_SERVER),
    ((*CLUSTER, "server"), "https://host/a b", NO_SERVER),
    ((*CLUSTER, "server"), f"https://{'h' * 64}", NO_SERVER),
    ((*CLUSTER, "server"), f"https://host{'/path' * 200}", NO_SERVER),
    ((*CLUSTER, "server"), None, NO_SERVER),
    ((*CLUSTER, "tls-server-name"), "a\nb", f"the server {OF_CLUSTER} has a tls-server-name that is no name: 'a\\nb'"),
    ((*CLUSTER, "insecure-skip-tls-verify"), True, "the cluster 'a-cluster' of {} has insecure-skip-tls-verify, which"),
    ((*CLUSTER, "proxy-url"), f"http://u:{SECRET}@p", "the cluster 'a-cluster' of {} has proxy-url, which"),
    ((*CLUSTER, CA_DATA), "DATA+OMITTED", f"the {CA_DATA} {OF_CLUSTER} was left out by kubectl: print it with --raw"),
    ((*CLUSTER, CA_DATA), f"{ENCODED}!", f"the {CA_DATA} {OF_CLUSTER} is not base64"),
    ((*CLUSTER, CA_DATA), ENCODED, f"the {CA_DATA} {OF_CLUSTER} is no PEM certificate"),
    ((*USER, "exec"), {"command": SECRET}, f"{HAS} exec, which is not supported: no program is run"),
    ((*USER, "auth-provider"), {"config": {"id-token": SECRET}}, f"{HAS} auth-provider, which is not supported: no"),
    ((*USER, "username"), SECRET, f"{HAS} username, which is not supported: API servers take no passwords"),
    ((*USER, "password"), SECRET, f"{HAS} password, which is not supported: API servers take no passwords"),
    ((*USER, "as"), "root", f"{HAS} as, which is not supported: "),
    ((*USER, "token"), [SECRET], f"the token {OF_USER} is no string"),
    ((*USER, "token"), "REDACTED", f"the token {OF_USER} was left out by kubectl: print it with --raw"),
    ((*USER, "token"), f"{SECRET}\n{SECRET}", f"the token {OF_USER} has white space in it"),
    ((*USER, "token"), f"{SECRET}\ud800", f"the token {OF_USER} has white space in it, or other characters"),
    ((*USER, "tokenFile"), "missing", f"the tokenFile 'missing' {OF_USER} cannot be read: No such file or directory"),
    ((*USER, "tokenFile"), "a\0b", f"the tokenFile 'a\\x00b' {OF_USER} cannot be read: no path looks like that"),
    ((*USER, "client-certificate-data"), ENCODED, f"{HAS} one of client-certificate and client-key without the other"),
    ((*USER, "client-key-data"), ENCODED, f"{HAS} one of client-certificate and client-key without the other"),
]


def changed(config: Object, path: tuple[Any, ...], value: object) -> Any:
    """A copy with another value at a place in it."""
    if not path:
        return value
    made = copy.copy(config)
    made[path[0]] = changed(made[path[0]] if len(path) > 1 else {}, path[1:], value)
    return made


class TestKubeconfig:
    @pytest.mark.parametrize(("path", "value", "message"), BAD)
    def test_what_is_wrong_is_named_and_no_secret(
        self, tmp_path: Path, path: tuple[Any, ...], value: object, message: str
    ) -> None:
        problem = problem_of(tmp_path, changed(kubeconfig(AT, {"token": SECRET}), path, value))
        assert problem.startswith(message.format(tmp_path / "kubeconfig.json"))
        assert problem.isprintable()
        assert len(problem) < 400
        assert SECRET not in problem
        assert ENCODED not in problem

    @pytest.mark.parametrize("text", ["apiVersion: v1\ntoken: s3cr3t\n", "", '{"token": s3cr3t', "[" * 100_000])
    def test_yaml_is_refused_with_a_hint(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "config").write_text(text)
        with pytest.raises(AccessProblem, match=r"is not JSON .*: print it with `kubectl config view --raw ") as raised:
            from_kubeconfig(tmp_path / "config")
        assert SECRET not in str(raised.value)

    @pytest.mark.parametrize("path", ["/dev/zero", "/", "missing", "a\0b"])
    def test_a_file_that_is_none(self, path: str) -> None:
        with pytest.raises(AccessProblem, match=r"cannot be read: |larger than 1 MiB"):
            from_kubeconfig(path)

    def test_without_a_current_context_the_only_one_counts(self, tmp_path: Path) -> None:
        config = changed(kubeconfig(AT), ("current-context",), None)
        assert from_kubeconfig(written(tmp_path, config)).url == AT
        two = changed(config, ("contexts",), config["contexts"] * 2)
        assert "has no current-context, and 2 contexts; print one by `kubectl" in problem_of(tmp_path, two)
        assert "has no contexts: print one that leads to a cluster by `kubectl" in problem_of(tmp_path, {})
        other = kubeconfig("https://127.0.0.2:6443")
        for kind in ("cluster", "user", "context"):
            other[f"{kind}s"][0]["name"] = "other"
            config[f"{kind}s"] += other[f"{kind}s"]
        other["contexts"][0]["context"] = {"cluster": "other", "user": "other"}
        config["current-context"] = "other"
        assert from_kubeconfig(written(tmp_path, config)).url == "https://127.0.0.2:6443"

    def test_who_one_is_is_told_without_the_secret(self, tmp_path: Path) -> None:
        def told(user: Object) -> tuple[str, dict[str, str]]:
            access = from_kubeconfig(written(tmp_path, kubeconfig(f"{AT}/", user)))
            assert f"{access!r}" == f"<Access to {AT}>"
            return access.credentials.partition(" of the user")[0], access.headers()

        assert told({"token": SECRET}) == ("the token", {"Authorization": f"Bearer {SECRET}"})
        (tmp_path / "file").write_text(f" {TOKEN}\n")  # relative to the kubeconfig, and it comes before the token
        both = {"tokenFile": "file", "token": SECRET}
        assert told(both) == ("the tokenFile 'file'", {"Authorization": f"Bearer {TOKEN}"})
        key = base64.encodebytes((PKI / "client.key").read_bytes()).decode()  # in lines, as base64(1) prints it
        client = {"client-certificate-data": data_of("client.pem"), "client-key-data": key}
        assert told(client) == ("the client-certificate-data", {})
        assert told({"exec": None}) == ("no token and no client certificate", {})  # whom kubectl calls anonymous

    def test_the_identity_is_of_the_address_and_the_authority(self, tmp_path: Path) -> None:
        identities = [
            from_kubeconfig(written(tmp_path, config)).identity
            for config in (
                kubeconfig(AT),
                kubeconfig(AT, {"token": SECRET}),
                kubeconfig(AT, certificate_authority_data=data_of("other-ca.pem")),
                kubeconfig(AT, certificate_authority_data=None),
                kubeconfig("https://127.0.0.2:6443"),
            )
        ]
        assert identities[0] == identities[1]
        assert len({*identities}) == 4

    @pytest.mark.parametrize(
        ("certificate", "key", "message"),
        [
            ("client.pem", b"s3cr3t", "are no PEM certificate and its own key"),
            ("client.pem", (PKI / "server.key").read_bytes(), "are no PEM certificate and its own key"),
            ("client.key", (PKI / "client.key").read_bytes(), "are no PEM certificate and its own key"),
            ("client.pem", ENCRYPTED_KEY.encode(), "is encrypted: a key without a passphrase is needed"),
            ("client.pem", b"", "is empty"),
            ("client.pem", None, "cannot be read: No such file or directory"),
        ],
    )
    def test_a_client_certificate_of_no_use(
        self, tmp_path: Path, certificate: str, key: bytes | None, message: str
    ) -> None:
        if key is not None:
            (tmp_path / "key").write_bytes(key)
        user = {"client-certificate-data": data_of(certificate), "client-key": "key"}
        problem = problem_of(tmp_path, kubeconfig(AT, user))
        assert f"of the user 'a-user' of {tmp_path}/kubeconfig.json {message}" in problem
        assert SECRET not in problem

    def test_a_client_key_needs_memory_that_is_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        user = {"client-certificate-data": data_of("client.pem"), "client-key-data": data_of("client.key")}
        monkeypatch.delattr(os, "memfd_create")
        message = "cannot be handed to TLS in memory: this Python was built without os.memfd_create(); a token needs no"
        assert message in problem_of(tmp_path, kubeconfig(AT, user))

    @given(st.data())
    def test_whatever_a_file_holds_there_is_access_or_a_short_message(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        any_json = st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from([AT, "a-user", "file", ENCODED]),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*NAMES]), inner, max_size=3),
            max_leaves=5,
        )
        path = data.draw(st.sampled_from(PLACES))
        config = changed(kubeconfig(AT, {"token": SECRET}), path, data.draw(any_json))
        try:
            from_kubeconfig(written(tmp_path_factory.getbasetemp(), config))
        except AccessProblem as problem:
            text = str(problem)
            assert SECRET not in text
            assert text.isprintable()
            assert len(text) < 600


PLACES = sorted({path for path, _, _ in BAD}, key=str)
NAMES = {str(path[-1]) for path in PLACES if path} | {"name", "user", "cluster", "context"}


@pytest.mark.kernel
class TestConnection:
    """On a real TLS server."""

    def test_the_token_that_a_file_holds_by_then(self, api: ApiServer, tmp_path: Path) -> None:
        (tmp_path / "token").write_text(TOKEN)
        access = from_kubeconfig(written(tmp_path, kubeconfig(api.url, {"tokenFile": "token"})))
        assert status_of(access) == 200
        api.token = "another"
        assert status_of(access) == 401
        (tmp_path / "token").write_text("another\n")
        assert status_of(access) == 200

    def test_a_wrong_authority_is_named_until_it_is_the_right_one(self, api: ApiServer, tmp_path: Path) -> None:
        shutil.copy(PKI / "other-ca.pem", tmp_path / "ca.crt")
        config = kubeconfig(api.url, certificate_authority_data=None, certificate_authority="ca.crt")
        access = from_kubeconfig(written(tmp_path, config))
        with pytest.raises(
            AccessProblem, match=r"the certificate of https://.* is refused: .*, and vouched for by the c"
        ):
            access.connect(30)
        assert api.requests == []
        shutil.copy(PKI / "ca.pem", tmp_path / "ca.crt")
        assert status_of(access) == 200

    @pytest.mark.parametrize("as_files", [False, True])
    def test_a_client_certificate(self, api: ApiServer, tmp_path: Path, as_files: bool) -> None:
        user = {"client-certificate-data": data_of("client.pem"), "client-key-data": data_of("client.key")}
        if as_files:
            user = {"client-certificate": str(PKI / "client.pem"), "client-key": str(PKI / "client.key")}
        access = from_kubeconfig(written(tmp_path, kubeconfig(api.url, user)))
        assert (access.headers(), status_of(access)) == ({}, 200)
        api.takes_certificates = False
        assert status_of(access) == 401

    @pytest.mark.parametrize(("name", "status"), [("kubernetes.default.svc", 200), ("::1", 200), ("another", None)])
    def test_the_server_name_is_what_the_certificate_has_to_be_for(
        self, api: ApiServer, tmp_path: Path, name: str, status: int | None
    ) -> None:
        access = from_kubeconfig(written(tmp_path, kubeconfig(api.url, tls_server_name=name)))
        if status:
            assert status_of(access) == status
            return
        with pytest.raises(AccessProblem, match=r"is refused: Hostname mismatch.*; it has to be for another, and"):
            access.connect(30)

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
    def test_TLS_before_1_2_is_refused_whatever_the_system_allows(  # noqa: N802
        self, api: ApiServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lax(**options: Any) -> ssl.SSLContext:
            context = default(**options)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.set_ciphers("ALL:@SECLEVEL=0")
            return context

        default = ssl.create_default_context
        monkeypatch.setattr(ssl, "create_default_context", lax)
        api._context.minimum_version = ssl.TLSVersion.TLSv1
        api._context.set_ciphers("ALL:@SECLEVEL=0")
        assert status_of(from_kubeconfig(api.kubeconfig)) == 200
        api._context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|unsupported.protocol"):
            from_kubeconfig(api.kubeconfig).connect(30)

    def test_an_address_of_version_6_and_a_path(self, api: ApiServer, tmp_path: Path) -> None:
        server = ApiServer("::1")
        server.start()
        try:
            access = from_kubeconfig(written(tmp_path, kubeconfig(f"{server.url}/k8s/clusters/c-1/")))
            assert status_of(access) == 404
            (request,) = server.requests
            assert request.path == f"/k8s/clusters/c-1{API}/endpointslices"
            assert request.headers["host"] == f"[::1]:{server.port}"
        finally:
            server.stop()

    def test_without_an_authority_those_of_the_system_are_asked(
        self, api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        access = from_kubeconfig(written(tmp_path, kubeconfig(api.url, certificate_authority_data=None)))
        with pytest.raises(AccessProblem, match="vouched for by the CAs of this system, for no other is given"):
            access.connect(30)
        monkeypatch.setenv("SSL_CERT_FILE", str(PKI / "ca.pem"))
        assert status_of(access) == 200

    def test_a_closed_connection_stays_closed(self, api: ApiServer) -> None:
        connection = from_kubeconfig(api.kubeconfig).connect(30)
        connection.close()
        with pytest.raises(http.client.NotConnected):
            connection.request("GET", "/")

    def test_no_answer_and_no_server_are_errors_of_the_system(self, api: ApiServer) -> None:
        access = from_kubeconfig(api.kubeconfig)
        api.silence()
        with pytest.raises(OSError, match="timed out"):
            access.connect(0.1)
        api.stop()
        with pytest.raises(ConnectionRefusedError):
            access.connect(30)

    def test_it_may_be_piped_in(self, api: ApiServer) -> None:
        """`--kubeconfig <(kubectl config view ...)`: then it is on no disk."""
        reader, writer = os.pipe()
        os.write(writer, json.dumps(kubeconfig(api.url)).encode())
        os.close(writer)
        try:
            assert status_of(from_kubeconfig(f"/dev/fd/{reader}")) == 200
        finally:
            os.close(reader)
