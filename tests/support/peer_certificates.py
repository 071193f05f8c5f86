"""Certificates of peers, good and bad, signed by authorities of the test's own."""

import datetime as dt

import trustme

LONG_AGO = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
JUST_THEN = dt.datetime(2001, 1, 2, tzinfo=dt.UTC)


class Files:
    """PEM files of one party: `cert`, `key` and the `ca` that signed them."""

    def __init__(self, folder):
        self.ca, self.cert, self.key = (
            folder / f"{name}.pem" for name in ("ca", "cert", "key")
        )


class Authority:
    """Signs certificates."""

    def __init__(self):
        self._authority = trustme.CA()

    def issue(self, folder, name="127.0.0.1", *, expired=False):
        """Write the files of a party into a folder and return them."""
        folder.mkdir(exist_ok=True)
        span = {"not_before": LONG_AGO, "not_after": JUST_THEN} if expired else {}
        issued = self._authority.issue_cert(name, **span)
        files = Files(folder)
        self._authority.cert_pem.write_to_path(files.ca)
        issued.cert_chain_pems[0].write_to_path(files.cert)
        issued.private_key_pem.write_to_path(files.key)
        return files
