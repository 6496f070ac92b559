"""The certificates of a run: each for one name and one side, and only the authority's own signs others."""

from __future__ import annotations

import datetime
import ssl
from typing import Any

import pytest

from snakepit_trio.wire.credentials import tls_context

x509 = pytest.importorskip("cryptography.x509")
from snakepit_trio.launch.authority import Authority  # noqa: E402

HOUR = datetime.timedelta(hours=1)


def read(pem: str) -> Any:
    return x509.load_pem_x509_certificate(pem.encode())


def extension(certificate: Any, name: str) -> Any:
    return certificate.extensions.get_extension_for_class(getattr(x509, name))


def usage(certificate: Any) -> set[str]:
    found = extension(certificate, "KeyUsage")
    assert found.critical
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
        "crl_sign",
    )  # fmt: skip
    return {name for name in names if getattr(found.value, name)}


def test_what_a_workers_is_good_for() -> None:
    issued = Authority("run1").for_worker("w1")
    mine, authority = read(issued.certificate), read(issued.authority)
    assert usage(mine) == {"digital_signature"}
    assert usage(authority) == {"key_cert_sign", "crl_sign"}
    assert [(extension(one, "BasicConstraints").value.ca, extension(one, "BasicConstraints").value.path_length) for one in (mine, authority)] == [
        (False, None), (True, 0),
    ]  # fmt: skip
    assert all(extension(one, "BasicConstraints").critical for one in (mine, authority))
    purpose = extension(mine, "ExtendedKeyUsage")
    assert purpose.critical and [one._name for one in purpose.value] == ["serverAuth"]
    names = extension(mine, "SubjectAlternativeName").value
    assert names.get_values_for_type(x509.DNSName) == ["w1"]
    assert mine.issuer == authority.subject == authority.issuer
    assert "snakepit run run1" in authority.subject.rfc4514_string()


def test_how_long_they_are_good() -> None:
    issued, now = Authority("r").for_worker("w"), datetime.datetime.now(datetime.UTC)
    for pem, life in ((issued.certificate, HOUR), (issued.authority, datetime.timedelta(days=3650))):
        found, minute = read(pem), datetime.timedelta(minutes=1)
        assert abs(found.not_valid_before_utc - (now - HOUR)) < minute
        assert abs(found.not_valid_after_utc - (now + life + HOUR)) < minute


def meet(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """The client's end of a handshake over memory."""
    ends = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2)]
    one = client.wrap_bio(*ends[0], server_hostname=name)
    other = server.wrap_bio(*ends[1], server_side=True)
    done: set[Any] = set()
    for _ in range(10):
        for here in (one, other):
            try:
                here.do_handshake()
                done.add(here)
            except ssl.SSLWantReadError:
                pass
            ends[1][0].write(ends[0][1].read())
            ends[0][0].write(ends[1][1].read())
    assert done == {one, other}
    with pytest.raises(ssl.SSLWantReadError):
        other.read()
    return one


def test_who_may_meet_whom() -> None:
    authority, stranger = Authority("r"), Authority("r")
    issued = authority.for_worker("w1")
    worker = tls_context(issued.certificate, issued.key, issued.authority, server_side=True)
    met = meet(authority.for_host(), worker, "w1")
    assert (met.version(), met.selected_alpn_protocol()) == ("TLSv1.3", "h2")
    with pytest.raises(ssl.SSLCertVerificationError):
        meet(authority.for_host(), worker, "w2")
    with pytest.raises(ssl.SSLError):
        meet(stranger.for_host(), worker, "w1")
    # A worker is no host to another.
    with pytest.raises(ssl.SSLError):
        meet(tls_context(issued.certificate, issued.key, issued.authority, server_side=False), worker, "w1")
    with pytest.raises(OSError):
        tls_context(issued.certificate, authority.for_worker("w1").key, issued.authority, server_side=True)
