"""Certificates of files, for both ends of TLS. An error says which file lacks what."""

from __future__ import annotations

import ssl
from pathlib import Path

from spop.errors import reason


def load_certificate(context: ssl.SSLContext, certificate: str, key: str | None = None) -> None:
    """Have a context use a certificate. Its private key is in the file `key`, or in the same one.

    Raises:
        ValueError: a file can't be read or used. The message begins with its name.
    """
    _check(certificate, "CERTIFICATE")
    _check(key or certificate, "PRIVATE KEY")
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if "MISMATCH" in (error.reason or ""):
            why = f"the private key in {key or certificate} is that of another one"
        else:
            why = reason(error)
        raise ValueError(f"{certificate}: {why}") from None


def _check(path: str, what: str) -> None:
    """OpenSSL does not say what is missing, and Python does not say which file is."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {reason(error)}") from None
    if f"{what}-----".encode() not in text:
        raise ValueError(f"{path}: there is no {what.lower()} in it")
