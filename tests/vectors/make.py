"""Make the test vectors: `python -m tests.vectors.make` writes one JSON file for each into this folder.

A vector of type `message` says: from this key, identity, header, meta, blob and entropy come these parts, and back. One
of type `refused`: these parts raise this error. One of type `derived`: from these inputs comes this output. All
byte strings are hex. Entropy: the n-th draw is SHA-256(seed || u64(n)), n from 1, cut to the bytes asked for; a
message draws once, the 20 bytes of its nonces.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.agreement import (
    identity_pair_key,
    mask_commitment,
    mask_root,
    pair_seed,
    public_half,
    ratcheted,
    session_pair_key,
    trial_key,
)
from ppdl_mq.crypto.hashing import framed, sha256
from ppdl_mq.crypto.seal import seal
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.numeric.exponents import exponents_digest
from ppdl_mq.protocol.masked_average.context import Context
from ppdl_mq.protocol.schedule import Schedule
from ppdl_mq.protocol.statements import (
    abandon_statement,
    agreement_statement,
    commitment_statement,
    drop_statement,
    final_statement,
    leave_statement,
    receipt_statement,
    session_key_bytes,
    sum_statement,
    turn_statement,
)
from ppdl_mq.wire.header import Header
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.meta import encode_meta
from tests.wire.samples import ANNA, BERT, KEY, MESSAGES, SESSION_ID, TRIAL_ID, blob_for, counted, header_for, parts_of

FOLDER = Path(__file__).parent
SECTION_2, SECTION_3, SECTION_6, SECTION_8 = (f"docs/PROTOCOL.md, section {number}" for number in (2, 3, 6, 8))

Vector = dict[str, Any]


def vectors() -> dict[str, Vector]:
    """Return every vector by the name of its file."""
    return _messages() | _refused() | _derived()


def _header_data(header: Header) -> Vector:
    data = dataclasses.asdict(header)
    del data["part"]
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in data.items()}


def _messages() -> dict[str, Vector]:
    made: dict[str, Vector] = {}
    for kind, message in MESSAGES.items():
        for shape, stride in (("one-part", 4_000), ("many-parts", 50)):
            name, blob = f"message-{kind.name.lower()}-{shape}", blob_for(kind)
            made[name] = {
                "type": "message",
                "source": SECTION_3,
                "seal_key": KEY.reveal().hex(),
                "signing_seed": ANNA.secret.reveal()[:32].hex(),
                "verify_key": ANNA.public.ed25519.hex(),
                "entropy_seed": name,
                "header": _header_data(header_for(message, blob, stride=stride)),
                "meta": encode_meta(message).hex(),
                "blob": blob.hex(),
                "parts": [part.hex() for part in parts_of(message, blob, stride=stride, random=counted(name))],
            }
    return made


def _refused() -> dict[str, Vector]:
    """Faults of one message each; `error` is the class in ppdl_mq/errors.py."""
    kind = Kind.TURN
    blob = blob_for(kind)
    whole = parts_of(MESSAGES[kind], blob, random=counted("refused"))[0]
    halves = parts_of(MESSAGES[kind], blob, stride=300, random=counted("refused in parts"))

    def at(offset: int, value: str) -> list[bytes]:
        new = bytes.fromhex(value)
        return [whole[:offset] + new + whole[offset + len(new) :]]

    other_header = parts_of(MESSAGES[kind], blob, stride=300, turn=8, random=counted("another turn"))
    faults: dict[str, tuple[str, str, list[bytes]]] = {
        "empty": ("Malformed", "rule 1: shorter than its fields", [b""]),
        "truncated-header": ("Malformed", "rule 1: shorter than its fields", [whole[:100]]),
        "truncated-names": ("Malformed", "rule 1: shorter than its fields", [whole[:116]]),
        "truncated-seal": ("Malformed", "rule 1: shorter than its fields", [whole[:-1]]),
        "trailing-byte": ("Malformed", "rule 1: bytes left over", [whole + b"\0"]),
        "magic": ("Malformed", "rule 1: magic", at(0, "50504450")),
        "version-0": ("UnknownVersion", "rule 1: version", at(4, "00")),
        "version-2": ("UnknownVersion", "rule 1: version", at(4, "02")),
        "kind-0": ("Malformed", "rule 1: unknown kind", at(5, "00")),
        "kind-20": ("Malformed", "rule 1: unknown kind", at(5, "14")),
        "reserved": ("Malformed", "rule 1: non-zero bytes at 6", at(6, "0001")),
        "sender-empty": ("Malformed", "rule 1: name", at(112, "00")),
        "sender-upper-case": ("Malformed", "rule 1: name", at(113, "41")),
        "recipient-dash-first": ("Malformed", "rule 1: name", at(118, "2d")),
        "stride-0": ("Malformed", "rule 2: stride 0", at(104, "00000000")),
        "body-68": ("Malformed", "rule 2: body size below 69", at(96, "0000000000000044")),
        "body-huge": ("TooLarge", "rule 2: body size", at(96, "ffffffffffffffff")),
        "stride-huge": ("TooLarge", "rule 2: part larger than any chunk", at(104, "ffffffff")),
        "parts-too-many": ("TooLarge", "section 3: at most 4 194 304 parts", at(96, "000000000040000100000001")),
        "part-beyond-last": ("Malformed", "rule 2: part not below the number of parts", at(108, "00000001")),
        "sealed-length": ("Malformed", "rule 2: another sealed length", at(96, "00000000000001f0")),
        "seal-nonce": ("Unauthentic", "rule 5: seal", at(122, f"{whole[122] ^ 1:02x}")),
        "seal-ciphertext": ("Unauthentic", "rule 5: seal", at(150, f"{whole[150] ^ 1:02x}")),
        "seal-tag": ("Unauthentic", "rule 5: seal", at(len(whole) - 1, f"{whole[-1] ^ 1:02x}")),
        "seal-trial-id": ("Unauthentic", "rule 5: associated data", at(8, "00")),
        "seal-session-id": ("Unauthentic", "rule 5: associated data", at(40, "00")),
        "seal-message-id": ("Unauthentic", "rule 5: associated data", at(72, "00")),
        "seal-turn": ("Unauthentic", "rule 5: associated data", at(88, "00000008")),
        "seal-attempt": ("Unauthentic", "rule 5: associated data", at(92, "00000001")),
        "seal-sender": ("Unauthentic", "rule 5: associated data", at(113, "62")),
        "seal-recipient": ("Unauthentic", "rule 5: associated data", at(118, "61")),
        "seal-kind": ("Unauthentic", "rule 5: associated data", at(5, "05")),
        "parts-with-two-headers": ("Malformed", "rule 6: different headers", [halves[0], other_header[1]]),
        "signature-of-another": (
            "Unauthentic",
            "rule 7: signature",
            parts_of(MESSAGES[kind], blob, sign=BERT.sign, random=counted("refused")),
        ),
    }
    for name, body in _bad_bodies().items():
        faults[name] = ("Malformed", "rule 8: meta", [body])
    return {
        f"refused-{name}": {
            "type": "refused",
            "source": f"{SECTION_3}, {rule}" if rule.startswith("rule") else f"docs/PROTOCOL.md, {rule}",
            "error": error,
            "seal_key": KEY.reveal().hex(),
            "verify_key": ANNA.public.ed25519.hex(),
            "parts": [part.hex() for part in parts],
        }
        for name, (error, rule, parts) in faults.items()
    }


def _bad_bodies() -> dict[str, bytes]:
    """Parts whose seal and signature hold, around a meta that must be refused."""
    notice = encode_meta(MESSAGES[Kind.NOTICE])
    metas = {
        "meta-not-canonical": b"\xde\x00\x01" + notice[1:],
        "meta-trailing": notice + b"\xc0",
        "meta-not-a-map": b"\x90",
        "meta-missing-key": b"\x80",
        "meta-additional-key": b"\x82" + notice[1:] + b"\xa1z\x01",
        "meta-duplicate-key": b"\x82" + notice[1:] + notice[1:],
        "meta-wrong-type": notice.replace(b"\xc4\x10", b"\xb0"),
        "meta-wrong-length": notice[:-1].replace(b"\xc4\x10", b"\xc4\x0f"),
        "meta-extension-type": b"\x81\xaamessage_id\xd4\x00\x00",
    }
    return {name: signed_part(Kind.NOTICE, meta, seed=name) for name, meta in metas.items()}


def signed_part(kind: Kind, meta: bytes, *, seed: str) -> bytes:
    """Return the one part of a message from Anna with any meta at all."""
    header = header_for(MESSAGES[kind], body_bytes=68 + len(meta))
    digests = hashlib.sha256(meta).digest(), hashlib.sha256(b"").digest()
    signature = ANNA.sign(framed(labels.MESSAGE, header.signed_bytes(), *digests))
    body = len(meta).to_bytes(4, "big") + meta + signature
    return header.encode() + seal(KEY, body, header.encode(), random=counted(seed))


def _derived() -> dict[str, Vector]:
    mine, theirs = Secret(b"\x41" * 32), Secret(b"\x42" * 32)
    contributions = {"anna": Secret(b"\x51" * 32), "bert": Secret(b"\x52" * 32)}
    directions = {"sender": "anna", "recipient": "bert"}
    pair = {"secret": mine.reveal().hex(), "public": public_half(theirs).hex()} | directions
    made: dict[str, Vector] = {
        "derived-identity-pair-key": {
            "source": SECTION_2,
            "inputs": pair | {"trial_id": TRIAL_ID.hex()},
            "output": identity_pair_key(mine, public_half(theirs), trial_id=TRIAL_ID, **directions).reveal().hex(),
        },
        "derived-session-pair-key": {
            "source": SECTION_2,
            "inputs": pair | {"session_id": SESSION_ID.hex()},
            "output": session_pair_key(mine, public_half(theirs), session_id=SESSION_ID, **directions).reveal().hex(),
        },
        "derived-trial-key": {
            "source": SECTION_2,
            "inputs": {"session_id": SESSION_ID.hex(), "anna": "51" * 32, "bert": "52" * 32},
            "output": trial_key(SESSION_ID, contributions).reveal().hex(),
        },
        "derived-session-key-signature": {
            "source": SECTION_2,
            "inputs": {"trial_id": TRIAL_ID.hex(), "name": "anna", "session_key": "61" * 32},
            "output": ANNA.sign(session_key_bytes(TRIAL_ID, "anna", b"\x61" * 32)).hex(),
        },
        "derived-turn-statement": {
            "source": SECTION_8,
            "inputs": {"session_id": SESSION_ID.hex(), "turn": 7, "before": "71" * 32, "digest": "72" * 32},
            "output": ANNA.sign(turn_statement(SESSION_ID, 7, b"\x71" * 32, b"\x72" * 32)).hex(),
        },
        "derived-final-statement": {
            "source": "docs/PROTOCOL.md, section 9",
            "inputs": {"session_id": SESSION_ID.hex(), "turn": 7, "digest": "72" * 32},
            "output": ANNA.sign(final_statement(SESSION_ID, 7, b"\x72" * 32)).hex(),
        },
    }
    for count in (2, 3, 10):
        peers = tuple(f"peer-{number}" for number in range(count))
        schedule = Schedule(trial_id=TRIAL_ID, peers=peers, epochs=3, turns_per_epoch=1, order="shuffled")
        made[f"derived-schedule-of-{count}"] = {
            "source": SECTION_6,
            "inputs": {"trial_id": TRIAL_ID.hex(), "peers": peers, "epochs": 3},
            "output": [schedule.epoch_order(epoch) for epoch in range(3)],
        }
    return {name: {"type": "derived"} | vector for name, vector in (made | _masked()).items()}


CONTEXT = Context(
    session=SESSION_ID,
    step=7,
    attempt=2,
    members=("anna", "bert", "cleo"),
    base=b"\x81" * 32,
    word=32,
    exponents=exponents_digest((-2, 0, 3, -512, 512)),
)


def _masked() -> dict[str, Vector]:
    """Keys, digests and statements of masked-average."""
    mine, theirs, key, seed = (Secret(bytes([byte]) * 32) for byte in (0x41, 0x42, 0x91, 0x92))
    context, digest = CONTEXT.digest(), b"\x93" * 32
    in_context = {"context": context.hex()}
    shards = tuple(bytes([byte]) * 32 for byte in (0x94, 0x95, 0x96))
    mask = mask_commitment(context, "anna", seed)
    commitment = commitment_statement(context, mask, shards)
    session = {"session_id": SESSION_ID.hex(), "step": 7}
    parts = commitment, ANNA.sign(commitment), commitment, BERT.sign(commitment)
    both = sha256(labels.COMMITMENTS, *parts)
    found: dict[str, tuple[str, Vector, bytes]] = {
        "mask-root": (
            "13",
            {
                "secret": mine.reveal().hex(),
                "public": public_half(theirs).hex(),
                "session_id": SESSION_ID.hex(),
                "sender": "anna",  # the smaller name of the two
                "recipient": "bert",
            },
            mask_root(mine, public_half(theirs), session_id=SESSION_ID, one="bert", other="anna").reveal(),
        ),
        "mask-ratchet": ("13", {"mask_key": key.reveal().hex()}, ratcheted(key).reveal()),
        "exponents-digest": ("14.2", {"exponents": [-2, 0, 3, -512, 512]}, CONTEXT.exponents),
        "context": ("13.1", {"session": SESSION_ID.hex(), "base": "81" * 32} | _context_numbers(), CONTEXT.encode()),
        "context-digest": ("13.1", {"encoded": CONTEXT.encode().hex()}, context),
        "pair-seed": ("13.2", in_context | {"mask_key": key.reveal().hex()}, pair_seed(key, context).reveal()),
        "mask-commitment": ("13.2", in_context | {"name": "anna", "seed": seed.reveal().hex()}, mask),
        "commitment-statement": (
            "13.2",
            in_context | {"mask": mask.hex(), "shards": [shard.hex() for shard in shards]},
            ANNA.sign(commitment),
        ),
        "commitments-digest": ("13.2", {"parts": [part.hex() for part in parts]}, both),
        "receipt-statement": (
            "13.2",
            in_context | {"commitments": both.hex()},
            ANNA.sign(receipt_statement(context, both)),
        ),
        "sum-statement": (
            "13.2",
            in_context | {"shard": 1, "digest": digest.hex()},
            ANNA.sign(sum_statement(context, 1, digest)),
        ),
        "agreement-statement": (
            "13.2",
            in_context | {"digest": digest.hex(), "commitments": both.hex()},
            ANNA.sign(agreement_statement(context, digest, both)),
        ),
        "abandon-statement": (
            "13.3",
            session | {"attempt": 2, "overflow": True},
            ANNA.sign(abandon_statement(SESSION_ID, 7, 2, True)),
        ),
        "leave-statement": ("13.3", session, ANNA.sign(leave_statement(SESSION_ID, 7))),
        "drop-statement": ("13.3", session | {"name": "cleo"}, ANNA.sign(drop_statement(SESSION_ID, 7, "cleo"))),
    }
    return {
        f"derived-{name}": {"source": f"docs/PROTOCOL.md, section {section}", "inputs": inputs, "output": output.hex()}
        for name, (section, inputs, output) in found.items()
    }


def _context_numbers() -> Vector:
    return {
        "step": CONTEXT.step,
        "attempt": CONTEXT.attempt,
        "members": list(CONTEXT.members),
        "word": CONTEXT.word,
        "exponents": CONTEXT.exponents.hex(),
    }


def main() -> None:
    """Write the files anew; those that no longer belong are removed."""
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name, vector in vectors().items():
        (FOLDER / f"{name}.json").write_text(json.dumps(vector, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
