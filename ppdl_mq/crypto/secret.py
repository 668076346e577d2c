"""Bytes that must not be seen: no printing, no pickling, comparison in constant time."""

from __future__ import annotations

import hmac
from typing import NoReturn, SupportsIndex


class Secret:
    """Secret bytes. `reveal` is the only way to them, so that every use can be searched for.

    Python cannot erase memory; this guards against logs, tracebacks and state files only.

    Args:
        value: the bytes.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(memoryview(value))  # bytes(n) would be n zeros

    def reveal(self) -> bytes:
        """Return the bytes, for use in a primitive."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a hash would tell about the value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied")
