"""The mask stream: ChaCha20 from a 256-bit seed, entered at any block.

Source: RFC 8439, section 2.4, with a nonce of 96 zero bits and the block counter as the only position. A constant nonce
is right here because a seed is used for one stream only: protocols derive or draw a seed for each use.

The cipher is OpenSSL's, through `cryptography`, from whose version 50 on a call lets other threads run meanwhile. It is
several times faster than libsodium's stream, which PyNaCl does not expose.
"""

from __future__ import annotations

import mmap
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from ppdl_mq.crypto.secret import Secret

SEED_BYTES: Final = 32
BLOCK_BYTES: Final = 64
MAX_STREAM_BYTES: Final = 2**32 * BLOCK_BYTES  # the block counter has 32 bits

_NONCE: Final = bytes(12)

# A cipher encrypts something; a keystream is the encryption of zeros. A private mapping that nobody writes to is, on
# Linux, one page of zeros seen many times: it leaves the processor's cache to the words that the stream is added to.
_ZEROS: Final = memoryview(mmap.mmap(-1, 1 << 18, access=mmap.ACCESS_COPY)).toreadonly()


class Stream:
    """A position in the stream of one seed, which moves on as bytes are taken. It belongs to one thread at a time.

    Args:
        seed: 32 bytes.
        offset: of the first byte to be taken: a multiple of 64 below `MAX_STREAM_BYTES`.

    Raises:
        ValueError: the seed has another length, or the stream cannot be entered there.
    """

    __slots__ = ("_encryptor", "_left_bytes")

    def __init__(self, seed: Secret, *, offset: int = 0) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"The seed of a stream has {SEED_BYTES} bytes, not {len(seed)}.")
        if offset % BLOCK_BYTES:
            raise ValueError(f"A stream is entered at a multiple of {BLOCK_BYTES} bytes, not at {offset}.")
        if not 0 <= offset < MAX_STREAM_BYTES:
            raise ValueError(f"A stream has {MAX_STREAM_BYTES} bytes; it cannot be entered at {offset}.")
        # `cryptography` calls the counter and the nonce together "the nonce".
        position = (offset // BLOCK_BYTES).to_bytes(4, "little") + _NONCE
        self._encryptor = Cipher(ChaCha20(seed.reveal(), position), mode=None).encryptor()
        self._left_bytes = MAX_STREAM_BYTES - offset

    def read_into(self, out: memoryview) -> None:
        """Fill `out`, a flat view of bytes, with the next bytes of the stream.

        Raises:
            ValueError: `out` is a view of something else, or the stream ends before. `out` is unchanged then.
        """
        size = len(out)
        if size != out.nbytes:
            raise ValueError("A stream fills a flat view of bytes.")
        if size > self._left_bytes:
            raise ValueError(f"The stream has {self._left_bytes} bytes left, not {size}.")
        self._left_bytes -= size
        for start in range(0, size, len(_ZEROS)):
            chunk = out[start : start + len(_ZEROS)]
            self._encryptor.update_into(_ZEROS[: len(chunk)], chunk)


def fill(seed: Secret, out: bytearray | memoryview, *, offset: int = 0) -> None:
    """Fill `out` with the bytes [offset, offset + size of `out`) of a seed's stream.

    Args:
        seed: 32 bytes.
        out: contiguous, of any length.
        offset: a multiple of 64.

    Raises:
        ValueError: the seed has another length, the offset is no multiple of 64, or the stream ends before.
    """
    stream = Stream(seed, offset=offset)
    view = memoryview(out)
    if view.nbytes:  # an empty view cannot be cast
        stream.read_into(view.cast("B"))
