"""``If-Match``: a change of one version and no other."""

from __future__ import annotations

from eventq.events.errors import PreconditionFailed


def check_version(if_match: str | None, version: int) -> None:
    """Raise ``PreconditionFailed`` where ``if_match`` (the header's value, if there is one) does not name ``version``."""
    if if_match is None or if_match.strip() == "*":
        return
    wanted = {tag.strip().removeprefix("W/").strip('"') for tag in if_match.split(",")}
    if str(version) not in wanted:
        raise PreconditionFailed(if_match, version)
