"""What is raised: one root, what the kernel answered, and what it could not have meant."""

from __future__ import annotations

import errno

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import socklb
from socklb import (
    AuditError,
    KernelError,
    MalformedMessage,
    NotPermitted,
    NotSupported,
    RunStopped,
    SocklbError,
    UnboundedFilter,
)
from socklb.errors import kernel_error
from socklb.filters import FilterSyntaxError


class TestTree:
    """SocklbError is the root; KernelError is an OSError too; a wrong argument is ValueError or TypeError."""

    @pytest.mark.parametrize(
        ("error", "parents"),
        [
            (MalformedMessage, {SocklbError}),
            (KernelError, {SocklbError, OSError}),
            (NotPermitted, {KernelError, SocklbError, OSError}),
            (NotSupported, {KernelError, SocklbError, OSError}),
            (AuditError, {SocklbError, OSError}),
            (RunStopped, {SocklbError}),
            (UnboundedFilter, {SocklbError, ValueError}),
            (FilterSyntaxError, {ValueError}),
        ],
    )
    def test_an_error_is_caught_by_its_parents_alone(
        self, error: type[Exception], parents: set[type[Exception]]
    ) -> None:
        kinds = {SocklbError, MalformedMessage, KernelError, NotPermitted, NotSupported, OSError, ValueError, TypeError}
        assert {kind for kind in kinds - {error} if issubclass(error, kind)} == parents

    def test_every_error_of_the_package_is_exported(self) -> None:
        defined = {kind.__name__ for kind in vars(socklb.errors).values() if isinstance(kind, type)}
        assert defined <= set(socklb.__all__)

    def test_without_a_run_there_is_no_report(self) -> None:
        assert SocklbError("x").report is None
        assert kernel_error(errno.EPERM, "x").report is None


class TestMalformedMessage:
    """Carries offset, expected and got, and says them."""

    def test_it_says_what_where_and_what_instead(self) -> None:
        error = MalformedMessage("cut header", offset=16, expected="16 bytes", got="3")
        assert (error.what, error.offset, error.expected, error.got) == ("cut header", 16, "16 bytes", "3")
        assert str(error) == "cut header at offset 16: expected 16 bytes, got 3"


class TestKernelError:
    """Carries the errno, what was being done, and the kernel's own words; says what is missing and how to get it."""

    @given(st.integers(1, 4095), st.text(max_size=20))
    @example(errno.EACCES, "")
    def test_an_errno_and_what_was_being_done(self, code: int, text: str) -> None:
        error = kernel_error(code, "dump TCP sockets", text)
        assert error.errno == code
        assert "dump TCP sockets: " in str(error)
        assert text in str(error.strerror)
        kinds: dict[int, type[KernelError]] = {
            errno.EPERM: NotPermitted,
            errno.EACCES: NotPermitted,
            errno.EOPNOTSUPP: NotSupported,
        }
        assert type(error) is kinds.get(code, KernelError)

    def test_the_words_of_the_system_and_of_the_kernel(self) -> None:
        assert kernel_error(errno.EINVAL, "dump", "no such attribute").strerror == (
            "dump: Invalid argument (no such attribute)"
        )
        assert kernel_error(errno.EINVAL, "dump").strerror == "dump: Invalid argument"

    def test_eperm_names_the_capability_and_where_it_is_needed(self) -> None:
        said = str(kernel_error(errno.EPERM, "destroy 10.0.0.1:80"))
        assert "destroy 10.0.0.1:80: not permitted: it needs CAP_NET_ADMIN" in said
        assert "network namespace" in said

    def test_eopnotsupp_names_the_option_of_the_kernel(self) -> None:
        assert "CONFIG_INET_DIAG_DESTROY" in str(kernel_error(errno.EOPNOTSUPP, "destroy", "x"))
