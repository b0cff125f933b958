"""Text that came from task code, made fit to be stored."""

from __future__ import annotations


def clean(text: str, max_chars: int) -> str:
    """At most ``max_chars`` characters that JSON and UTF-8 can carry: lone surrogates and NUL are replaced."""
    return text[:max_chars].replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def text_of(value: object) -> str:
    """``str(value)``, whatever that does: values whose ``__str__`` raises, even ``SystemExit``, get a substitute."""
    try:
        return str(value)
    except BaseException as broken:
        return f"(its text cannot be had: {type(broken).__name__})"
