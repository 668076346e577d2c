from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from ppdl_mq.transport.allocator import keep_freed_chunks

# Prints how many pages the system had to provide for buffers of a chunk's size that come and go.
_PAGES = """
import resource, sys
if sys.argv[1] == "kept":
    from ppdl_mq.transport.allocator import keep_freed_chunks
    keep_freed_chunks()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def come_and_go():
    for _ in range(20):
        held = [bytes(900_000) for _ in range(5)]
        del held
come_and_go()
before = pages()
come_and_go()
print(pages() - before)
"""


def pages(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _PAGES, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_chunks_keep_their_pages() -> None:
    assert pages("kept") * 10 < pages("as it is")


def test_twice_is_harmless() -> None:
    keep_freed_chunks()
    keep_freed_chunks()
