"""Certificates for one test run, by the openssl command."""

import shutil
import subprocess

import pytest


def make_certificates(folder):
    """Return (cert, key, ca) of 127.0.0.1, good for servers and clients."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make certificates")
    ca, ca_key = folder / "ca.pem", folder / "ca.key"
    cert, key, request = folder / "cert.pem", folder / "key.pem", folder / "csr.pem"
    names = folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1\n")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    signed = ["-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", names]
    for command in (
        ["req", "-x509", *new, "-subj", "/CN=test", "-keyout", ca_key, "-out", ca],
        ["req", *new, "-subj", "/CN=here", "-keyout", key, "-out", request],
        ["x509", "-req", "-in", request, *signed, "-days", "2", "-out", cert],
    ):
        subprocess.run([openssl, *command], check=True, capture_output=True)
    return cert, key, ca
