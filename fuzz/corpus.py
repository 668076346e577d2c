"""Make the corpus: `python -m fuzz.corpus FOLDER` writes valid inputs of every target, from tests/vectors and tests."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fuzz.people import ANNA, NAMES, PEOPLE, manifest_of
from fuzz.targets import TARGETS
from fuzz.targets.wire import CONTEXT
from ppdl_mq.config.manifest_text import PRESETS, manifest_text
from ppdl_mq.config.settings_text import settings_text
from ppdl_mq.config.toml_text import toml_key, toml_value
from ppdl_mq.crypto import passphrase
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.peer.identity_file import create_identity
from ppdl_mq.protocol.statements import context_digest
from ppdl_mq.wire import canonical
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.trial_id import manifest_bytes
from tests.audit import logs
from tests.people import identity_of
from tests.protocol import masked_world, world

ROOT = Path(__file__).parents[1]
FOUND = Path(__file__).parent / "found"  # inputs that once broke something, by target
_PROTOCOLS = ("server-aided", "fully-connected", "masked-average")
_MOST_STATES = 24


def seeds(name: str) -> list[bytes]:
    """Return the inputs that a target starts from: valid ones, and those that once broke it."""
    made = {seed for seed in _MADE[name]() if len(seed) <= TARGETS[name].longest_bytes}
    return sorted(made) + found(name)


def found(name: str) -> list[bytes]:
    """Return the inputs that once broke a target."""
    return [path.read_bytes() for path in sorted((FOUND / name).glob("*"))]


def _vectors(kind: str) -> Iterator[dict[str, str | list[str]]]:
    for path in sorted((ROOT / "tests" / "vectors").glob("*.json")):
        vector = json.loads(path.read_text())
        if vector["type"] == kind:
            yield vector


def _header() -> Iterator[bytes]:
    for kind in ("message", "refused"):
        for vector in _vectors(kind):
            yield from (bytes.fromhex(part) for part in vector["parts"])


def _metas() -> Iterator[tuple[int, bytes]]:
    for vector in _vectors("message"):
        header = vector["header"]
        assert isinstance(header, dict)
        yield list(Kind).index(Kind(header["kind"])), bytes.fromhex(str(vector["meta"]))


def _body() -> Iterator[bytes]:
    for number, meta in _metas():
        yield bytes([number, 0]) + meta
        yield bytes([number, 1]) + len(meta).to_bytes(4, "big") + meta + bytes(164)


def _canonical() -> Iterator[bytes]:
    yield from (meta for _, meta in _metas())
    yield canonical.encode({"a": [None, True, 1, -1, 300, 2**40, 1.5, "text", b"bytes", {"b": []}]})
    yield b"\x91" * 15 + b"\x90"


def _manifests() -> Iterator[bytes]:
    yield from (manifest_bytes(manifest_of(protocol)) for protocol in _PROTOCOLS)


def _manifest_texts() -> Iterator[bytes]:
    for protocol in _PROTOCOLS:
        data = manifest_of(protocol).as_data()
        data["data"] = {key: value for key, value in data["data"].items() if value is not None}
        for table in (data["training"], data.get("averaging", {})):
            for key in [key for key, value in table.items() if value is None]:
                del table[key]
        yield "\n".join(f"{toml_key(key)} = {toml_value(value)}" for key, value in data.items()).encode()
    for preset in PRESETS.values():
        text = manifest_text(
            preset, name="fuzz", nonce="00" * 16, protocol="masked-average", order="fixed", turns_per_epoch=1,
            turn_steps=None,
        )  # fmt: skip
        peers = "".join(f'[[peers]]\nname = "{name}"\nkeys = "{PEOPLE[name].public.keys}"\n' for name in NAMES)
        yield "\n".join(line for line in (text + peers).splitlines() if not line.startswith("#")).encode()


def _settings() -> Iterator[bytes]:
    for broker in ("amqps://anna@broker.example:5671/vhost", "embedded:relay.sqlite"):
        yield settings_text(
            identity=Path("anna.key"), state_dir=Path("state"), device="cpu", broker=broker,
            login={"password_env": "WORD"}, declare=True, data="ppdl_mq.training.data.tables:csv",
            data_arguments={"path": "anna.csv", "target": "sick"},
        ).encode()  # fmt: skip


def _lines() -> Iterator[bytes]:
    yield from (identity.line.encode() for identity in PEOPLE.values())


def _identity_files() -> Iterator[bytes]:
    cheap = passphrase.Cost(ops=1, memory_bytes=8_192)
    for number, word in enumerate((None, Secret(b"correct horse"))):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / str(number)
            create_identity(path, "anna", passphrase=word, cost=cheap)
            yield path.read_bytes()


def _sequential_states() -> Iterator[bytes]:
    trial = world.World(protocol="fully-connected", impatience=0.05, seed=5, training__epochs=2)
    trial.start()
    kept: dict[str, bytes] = {}
    while not trial.has_ended:
        for peer in trial.peers.values():
            kept[peer.state.phase.value] = canonical.encode(peer.state.as_data())
        trial.step()
    yield from kept.values()


def _masked_states() -> Iterator[bytes]:
    with masked_world.cheap_signatures():
        trial = masked_world.World(seed=3, cheap=True)
        kept: dict[str, bytes] = {}
        for _ in range(3_000):
            for peer in trial.peers.values():
                kept.setdefault(peer.state.phase.value, canonical.encode(peer.state.as_data()))
            if all(peer.is_over for peer in trial.peers.values()):
                break
            trial.step()
    yield from list(kept.values())[:_MOST_STATES]


def _contexts() -> Iterator[bytes]:
    yield CONTEXT.encode()


def _log_lines() -> Iterator[bytes]:
    for records, manifest in ((logs.masked_records(1), logs.MASKED), (logs.turn_records(2), logs.SEQUENTIAL)):
        yield from logs.lines_of(logs.entries_of("anna", records, manifest), ANNA.sign)


def _logs() -> Iterator[bytes]:
    for records, manifest in ((logs.masked_records(1), logs.MASKED), (logs.turn_records(2), logs.SEQUENTIAL)):
        entries = logs.entries_of("anna", records, manifest)
        yield b"".join(logs.lines_of(entries[:10], identity_of("anna").sign))


def _statements() -> Iterator[bytes]:
    """Statements of both kinds of trial; the target signs them, the session id follows from the keys."""
    for protocol in ("masked-average", "fully-connected"):
        yield canonical.encode([protocol, *_said(protocol)])


def _said(protocol: str) -> list[object]:
    from ppdl_mq.crypto import labels
    from ppdl_mq.crypto.hashing import sha256
    from ppdl_mq.protocol.statements import statement_bytes
    from ppdl_mq.wire.trial_id import trial_id

    the_id = trial_id(manifest_of(protocol))
    keys = {name: {"trial": the_id, "name": name, "key": hashlib.sha256(name.encode()).digest()} for name in NAMES}
    parts = [
        part
        for name in NAMES
        for part in (name.encode(), keys[name]["key"], PEOPLE[name].sign(statement_bytes("session key", keys[name])))
    ]
    session = sha256(labels.SESSION_ID, the_id, *parts)  # type: ignore[arg-type]
    said: list[object] = [[name, "session key", keys[name]] for name in NAMES]
    if protocol != "masked-average":
        before = bytes(32)
        for turn, by in enumerate(("anna", "anna", "bert", "cleo", "anna", "bert", "cleo")):
            now = bytes([turn + 1]) * 32
            said.append([by, "turn", {"session": session, "turn": turn, "before": before, "digest": now}])
            before = now
        return [*said, *([name, "final", {"session": session, "turn": 6, "digest": before}] for name in NAMES)]
    context = canonical.encode(canonical.decode(CONTEXT.encode(), limit_bytes=4_096) | {"session": session})
    digest, many = context_digest(context), [bytes([number]) * 32 for number in range(3)]
    for number, name in enumerate(NAMES):
        said += [
            [name, "commitment", {"context": context, "mask": bytes(32), "shards": many}],
            [name, "receipt", {"context": digest, "commitments": bytes(32)}],
            [name, "sum", {"context": digest, "shard": number, "digest": bytes(32)}],
            [name, "agreement", {"context": digest, "digest": bytes(32), "commitments": bytes(32)}],
        ]
    said.append(["bert", "abandon", {"session": session, "step": 3, "attempt": 0, "overflow": True}])
    said.append(["anna", "drop", {"session": session, "step": 4, "name": "cleo"}])
    said.append(["anna", "leave", {"session": session, "step": 5}])
    return said


def _journals() -> Iterator[bytes]:
    """One edit of each sort to each file, and one of each value to each column."""
    yield b""
    yield from (bytes([which, what, 0, 16 * which, 100, 1, 2, 3]) for which in range(5) for what in range(7))
    for table in range(9):
        for column in range(0, 16, 2):
            yield bytes([table, 7, 0, 0, 0, column, (3 * table + column) % 11, column])


_MADE = {
    "header": _header,
    "body": _body,
    "meta": lambda: (bytes([number]) + meta for number, meta in _metas()),
    "canonical": _canonical,
    "context": _contexts,
    "manifest-text": _manifest_texts,
    "manifest-bytes": _manifests,
    "settings": _settings,
    "public-line": _lines,
    "identity-file": _identity_files,
    "state-sequential": _sequential_states,
    "state-masked": _masked_states,
    "entry": _log_lines,
    "log": _logs,
    "statements": _statements,
    "journal": _journals,
}


def main() -> None:
    """Write one file a seed into FOLDER/TARGET; what is there already stays."""
    for name in TARGETS:
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed in seeds(name):
            (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


if __name__ == "__main__":
    main()
