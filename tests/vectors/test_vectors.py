from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from nacl import bindings

from ppdl_mq import errors
from ppdl_mq.crypto.identity import Identity, PublicIdentity
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Malformed, RemoteError
from ppdl_mq.wire.envelope import Opened, open_part, read_body, seal_parts
from ppdl_mq.wire.header import Header, split_part
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.meta import decode_meta
from tests.vectors.make import FOLDER, vectors
from tests.wire.samples import ANNA, counted

LOADED: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}


def of_type(wanted: str) -> list[str]:
    return [name for name, vector in LOADED.items() if vector["type"] == wanted]


def test_there_are_vectors() -> None:
    assert len(of_type("message")) == 2 * len(Kind)
    assert len(of_type("refused")) >= 40
    assert len(of_type("derived")) >= 24
    assert all(vector["source"].startswith("docs/PROTOCOL.md") for vector in LOADED.values())


def test_the_files_are_what_the_script_makes() -> None:
    assert json.loads(json.dumps(vectors())) == LOADED


def opened(vector: dict[str, Any]) -> tuple[Opened, bytes]:
    """Read the parts of a vector as docs/PROTOCOL.md says, without the package's intake."""
    key, verify_key = Secret(bytes.fromhex(vector["seal_key"])), bytes.fromhex(vector["verify_key"])
    parts = [bytes.fromhex(part) for part in vector["parts"]]
    headers = [split_part(part)[0] for part in parts]
    body = b"".join(open_part(key, part) for part in parts)
    if any(header.of_part(0) != headers[0] for header in headers):
        raise Malformed("different headers")
    sender = PublicIdentity(name=headers[0].sender, ed25519=verify_key, x25519=ANNA.public.x25519)
    return read_body(headers[0], memoryview(body), sender), body


@pytest.mark.parametrize("name", of_type("message"))
def test_messages(name: str) -> None:
    vector = LOADED[name]
    fields = {key: bytes.fromhex(value) if key.endswith("_id") else value for key, value in vector["header"].items()}
    header = Header(**fields | {"kind": Kind(fields["kind"])})
    meta, blob = bytes.fromhex(vector["meta"]), bytes.fromhex(vector["blob"])
    message = decode_meta(header.kind, meta)
    signer = Identity(name="anna", secret=Secret(bytes.fromhex(vector["signing_seed"]) + bytes(32)))
    sealed = seal_parts(
        header,
        message,
        Secret(bytes.fromhex(vector["seal_key"])),
        signer.sign,
        blob=memoryview(blob),
        random=counted(vector["entropy_seed"]),
    )
    assert [part.hex() for part in sealed] == vector["parts"]
    result, body = opened(vector)
    assert (result.header, result.message) == (header, message)
    assert body == len(meta).to_bytes(4, "big") + meta + blob + body[-64:]


@pytest.mark.parametrize("name", of_type("refused"))
def test_refused(name: str) -> None:
    vector = LOADED[name]
    expected = getattr(errors, vector["error"])
    assert issubclass(expected, RemoteError)
    with pytest.raises(expected) as caught:
        opened(vector)
    assert type(caught.value) is expected


def framed(label: str, *parts: bytes) -> bytes:
    """Written anew from the first page of the specification."""
    raw = b"ppdl-mq/1 " + label.encode() + b"\0"
    for part in parts:
        raw += len(part).to_bytes(8, "big") + part
    return raw


def pair_key(label: str, context: str) -> Any:
    def derive(inputs: dict[str, Any]) -> str:
        shared = bindings.crypto_scalarmult(bytes.fromhex(inputs["secret"]), bytes.fromhex(inputs["public"]))
        names = inputs["sender"].encode(), inputs["recipient"].encode()
        keyed = hashlib.blake2b(framed(label, bytes.fromhex(inputs[context]), *names), key=shared, digest_size=32)
        return keyed.hexdigest()

    return derive


def trial_key(inputs: dict[str, Any]) -> str:
    raw = {name: bytes.fromhex(value) for name, value in inputs.items()}
    return hashlib.sha256(
        framed("trial key", raw["session_id"], b"anna", raw["anna"], b"bert", raw["bert"])
    ).hexdigest()


def signed(label: str, *fields: str) -> Any:
    def sign(inputs: dict[str, Any]) -> str:
        parts = []
        for field in fields:
            value = inputs[field]
            if isinstance(value, int):
                parts.append(value.to_bytes(1 if field == "overflow" else 4, "big"))
            elif isinstance(value, list):
                parts += [bytes.fromhex(each) for each in value]
            else:
                parts.append(value.encode() if field == "name" else bytes.fromhex(value))
        return ANNA.sign(framed(label, *parts)).hex()

    return sign


def schedule(inputs: dict[str, Any]) -> list[list[str]]:
    orders = []
    for epoch in range(inputs["epochs"]):
        names = sorted(inputs["peers"])
        n = len(names)
        for i in range(n - 1, 0, -1):
            seed = b"ppdl-mq/1 schedule\0" + bytes.fromhex(inputs["trial_id"])
            word = hashlib.sha256(seed + epoch.to_bytes(8, "big") + (n - 1 - i).to_bytes(8, "big")).digest()[:8]
            j = int.from_bytes(word, "big") % (i + 1)
            names[i], names[j] = names[j], names[i]
        orders.append(names)
    return orders


def digest_of(label: str, *fields: str) -> Any:
    def derive(inputs: dict[str, Any]) -> str:
        parts: list[bytes] = []
        for field in fields:
            value = inputs[field]
            if isinstance(value, list):
                parts += [bytes.fromhex(each) for each in value]
            else:
                parts.append(value.encode() if field == "name" else bytes.fromhex(value))
        return hashlib.sha256(framed(label, *parts)).hexdigest()

    return derive


def exponents(inputs: dict[str, Any]) -> str:
    raw = b"".join((each % 2**16).to_bytes(2, "big") for each in inputs["exponents"])
    return hashlib.sha256(framed("exponents", raw)).hexdigest()


def pair_seed(inputs: dict[str, Any]) -> str:
    info = framed("pair mask", bytes.fromhex(inputs["context"]))
    return hashlib.blake2b(info, key=bytes.fromhex(inputs["mask_key"]), digest_size=32).hexdigest()


def context(inputs: dict[str, Any]) -> str:
    """MessagePack by hand: a map with its keys in order, and every value in its shortest form."""

    def text(value: str) -> bytes:
        return bytes([0xA0 + len(value)]) + value.encode()

    def value_of(value: Any) -> bytes:
        if isinstance(value, int):
            assert value < 128
            return bytes([value])
        if isinstance(value, list):
            return bytes([0x90 + len(value)]) + b"".join(map(text, value))
        return b"\xc4\x20" + bytes.fromhex(value)

    entries = sorted(inputs.items())
    return (bytes([0x80 + len(entries)]) + b"".join(text(key) + value_of(value) for key, value in entries)).hex()


INDEPENDENT = {
    "derived-mask-root": pair_key("mask root", "session_id"),
    "derived-mask-ratchet": digest_of("mask ratchet", "mask_key"),
    "derived-exponents-digest": exponents,
    "derived-context": context,
    "derived-context-digest": digest_of("context", "encoded"),
    "derived-pair-seed": pair_seed,
    "derived-mask-commitment": digest_of("mask commitment", "context", "name", "seed"),
    "derived-commitments-digest": digest_of("commitments", "parts"),
    "derived-commitment-statement": signed("commitment", "context", "mask", "shards"),
    "derived-receipt-statement": signed("receipt", "context", "commitments"),
    "derived-sum-statement": signed("sum", "context", "shard", "digest"),
    "derived-agreement-statement": signed("agreement", "context", "digest", "commitments"),
    "derived-abandon-statement": signed("abandon", "session_id", "step", "attempt", "overflow"),
    "derived-leave-statement": signed("leave", "session_id", "step"),
    "derived-drop-statement": signed("drop", "session_id", "step", "name"),
    "derived-identity-pair-key": pair_key("identity pair", "trial_id"),
    "derived-session-pair-key": pair_key("session pair", "session_id"),
    "derived-trial-key": trial_key,
    "derived-session-key-signature": signed("session key", "trial_id", "name", "session_key"),
    "derived-turn-statement": signed("turn statement", "session_id", "turn", "before", "digest"),
    "derived-final-statement": signed("final statement", "session_id", "turn", "digest"),
}


@pytest.mark.parametrize("name", of_type("derived"))
def test_derived(name: str) -> None:
    derive = schedule if name.startswith("derived-schedule") else INDEPENDENT[name]
    assert derive(LOADED[name]["inputs"]) == LOADED[name]["output"]
