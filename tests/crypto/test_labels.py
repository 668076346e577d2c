from __future__ import annotations

import copy
import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import framed, sha256
from ppdl_mq.crypto.secret import Secret

ALL = {name: value for name, value in vars(labels).items() if isinstance(value, bytes) and name != "PREFIX"}


def test_no_label_is_the_beginning_of_another() -> None:
    assert len(ALL) >= 10
    for label in ALL.values():
        assert label.startswith(b"ppdl-mq/1 ")
        assert label.index(b"\0") == len(label) - 1
    for one, other in itertools.permutations(ALL.values(), 2):
        assert not one.startswith(other)


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_different_lists_of_values_are_framed_differently(one: list[bytes], other: list[bytes]) -> None:
    assert (framed(labels.MESSAGE, *one) == framed(labels.MESSAGE, *other)) == (one == other)
    assert sha256(labels.MESSAGE, *one) != sha256(labels.SCHEDULE, *one)


def test_a_secret_is_not_shown_copied_or_hashed() -> None:
    secret = Secret(b"the launch code")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret:>30}", repr([secret]), f"{secret!r}"):
        assert "launch" not in shown
    for spread in (copy.copy, copy.deepcopy, pickle.dumps, hash):
        with pytest.raises(TypeError):
            spread(secret)
    assert secret == Secret(b"the launch code")
    assert secret != Secret(b"another code")
    assert secret != b"the launch code"
