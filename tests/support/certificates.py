"""Certificates for one test run, signed by an authority of the test's own."""

import trustme


def make_certificates(folder):
    """Return (cert, key, ca) of 127.0.0.1, good for servers and clients."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    ca, cert, key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    authority.cert_pem.write_to_path(ca)
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return cert, key, ca
