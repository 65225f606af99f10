"""Finds and hides credentials in URLs, such as `https://user:password@host`."""

import re

# only before the first slash: an @ in a path or key is none
_CREDENTIALS = re.compile(r"(?<![A-Za-z0-9+.\-])([A-Za-z][A-Za-z0-9+.\-]*://)[^\s/@'\"]*@")


def has_credentials(text: str) -> bool:
    """Tells whether a text contains a URL with a user name, password or token before its host."""
    return _CREDENTIALS.search(text) is not None


def redact(text: str) -> str:
    """Replaces the credentials of all URLs in a text by `***`."""
    return _CREDENTIALS.sub(r"\1***@", text)
