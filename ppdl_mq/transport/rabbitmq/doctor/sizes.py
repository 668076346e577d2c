"""The broker's limit on the size of one message, found by messages that it refuses in any case."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ppdl_mq.config import limits
from ppdl_mq.transport.findings import Finding
from ppdl_mq.transport.rabbitmq.doctor import probes
from ppdl_mq.transport.rabbitmq.doctor.session import Reply, Session

_LIMIT: Final = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")
_STEP: Final = limits.MIN_CHUNK_BYTES  # the advice is a multiple of it


def largest(session: Session, chunk_bytes: int | None, *, exchange: str, thorough: bool) -> Iterator[Finding]:
    """Look for the limit.

    Args:
        session: with the broker.
        chunk_bytes: what the trial needs, or None.
        exchange: any name; nothing gets into it.
        thorough: probe up to the largest chunk that a manifest may have (16 MiB), not just what the trial needs.

    Raises:
        Blocked: the broker takes no messages at all.
    """
    for size_bytes in _sizes(chunk_bytes, thorough=thorough):
        # The limit is checked before everything else, so the message is refused for its size, or for another reason.
        refused = probes.publish_refused(session, exchange, probes.new_word(), size_bytes)
        limit = _limit(refused, size_bytes)
        if limit is not None:
            yield _limited(limit, chunk_bytes)
            return
    most = size_bytes
    enough = "" if chunk_bytes is None else f"; the trial needs {chunk_bytes}"
    yield Finding(
        check="message size",
        result="pass",
        says=f"The broker takes messages of {most} bytes{enough}.",
        figures={"at_least_bytes": most},
    )


def _sizes(chunk_bytes: int | None, *, thorough: bool) -> list[int]:
    sizes = [] if chunk_bytes is None else [chunk_bytes]
    return [*sizes, limits.MAX_CHUNK_BYTES] if thorough or not sizes else sizes


def _limit(refused: Reply, size_bytes: int) -> int | None:
    """Return the limit where the size was refused. A broker that does not name its own is taken to be just below."""
    named = _LIMIT.search(refused.text)
    if named is not None:
        return int(named[1])
    return size_bytes - 1 if refused.code == 311 or "message size" in refused.text else None


def _limited(limit: int, chunk_bytes: int | None) -> Finding:
    needed = chunk_bytes or limits.USUAL_CHUNK_BYTES
    if limit < limits.MIN_CHUNK_BYTES:
        return Finding(
            check="message size",
            result="fail",
            says=f"The broker takes messages of {limit} bytes at most; the smallest chunks have "
            f"{limits.MIN_CHUNK_BYTES}.",
            todo="No trial fits; have the limit raised.",
            line=_raised(needed),
            figures={"limit_bytes": limit},
        )
    advice = limit // _STEP * _STEP
    figures = {"limit_bytes": limit, "advised_chunk_bytes": advice}
    if chunk_bytes is not None and chunk_bytes > limit:
        return Finding(
            check="message size",
            result="fail",
            says=f"The broker takes messages of {limit} bytes at most; the trial's chunks have {chunk_bytes}.",
            todo=f"Agree on relay.chunk_bytes = {advice} or less in the manifest, or have the limit raised.",
            line=_raised(needed),
            figures=figures,
        )
    fits = f"; relay.chunk_bytes = {advice} or less." if chunk_bytes is None else f"; the trial needs {chunk_bytes}."
    return Finding(
        check="message size",
        result="pass",
        says=f"The broker takes messages of {limit} bytes at most{fits}",
        figures=figures,
    )


def _raised(limit: int) -> str:
    return f"max_message_size = {limit}   # in rabbitmq.conf, bytes; then a restart"
