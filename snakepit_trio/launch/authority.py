"""The certificates of a run whose workers are on other machines. Needs the package ``cryptography`` on the host only.

A run is its own authority, in memory, and trusts no other. Each worker gets a server certificate in its own name, and
its host a client certificate. Neither can be used in the other role, so a worker can't impersonate a host to another
worker. Certificates are checked only when the connection is made, soon after they were issued.
"""

from __future__ import annotations

import datetime
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from snakepit_trio.wire.credentials import tls_context
from snakepit_trio.wire.startup import Credentials

__all__ = ["Authority"]

#: The largest difference between the clocks of two machines.
_SKEW = datetime.timedelta(hours=1)
#: The time after its issue in which a certificate may be used.
_SHORT = datetime.timedelta(hours=1)
#: The longest life of a run: the authority's own certificate must be valid at each new connection.
_LONG = datetime.timedelta(days=3650)


class Authority:
    """Issues certificates to one run's workers and to their host.

    Args:
        run_id: The id named in the authority's certificate.
    """

    def __init__(self, run_id: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"snakepit run {run_id}")
        builder = self._builder(self._name, self._key.public_key(), _LONG)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs=True), critical=True)
        self._certificate = _pem(builder.sign(self._key, hashes.SHA256()))

    def __repr__(self) -> str:
        return "<Authority>"

    def for_worker(self, worker_id: str) -> Credentials:
        """Return the credentials of a worker."""
        return self._issue(worker_id, ExtendedKeyUsageOID.SERVER_AUTH)

    def for_host(self) -> ssl.SSLContext:
        """Return the host's TLS context for the connection to one worker; the expected server name is the worker's id."""
        made = self._issue("host", ExtendedKeyUsageOID.CLIENT_AUTH)
        return tls_context(made.certificate, made.key, made.authority, server_side=False)

    def _issue(self, name: str, purpose: x509.ObjectIdentifier) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_name(name), key.public_key(), _SHORT)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Credentials(_pem(builder.sign(self._key, hashes.SHA256())), private.decode(), self._certificate)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, life: datetime.timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + life + _SKEW)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
