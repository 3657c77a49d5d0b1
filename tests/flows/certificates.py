"""Certificate authorities of the tests, each with what it has signed."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Authority:
    """Its certificate is `ca`; what it signed is in `cert`, the key of that in `key`: PEM files in a directory."""

    def __init__(self, home: Path, name: str) -> None:
        own, signed = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"whom {name} knows")])
        now = datetime.datetime.now(datetime.timezone.utc)

        def sign(who: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
            made = (
                x509.CertificateBuilder()
                .subject_name(who)
                .issuer_name(issuer)
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(hours=1))
                .not_valid_after(now + datetime.timedelta(days=2))
                .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
                .add_extension(
                    x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
                )
                .sign(own, hashes.SHA256())
            )
            return made.public_bytes(serialization.Encoding.PEM)

        home.mkdir(parents=True, exist_ok=True)
        self.ca, self.cert, self.key = (home / f"{name}-{part}.pem" for part in ("ca", "cert", "key"))
        self.ca.write_bytes(sign(issuer, own, ca=True))
        self.cert.write_bytes(sign(subject, signed, ca=False))
        self.key.write_bytes(
            signed.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
