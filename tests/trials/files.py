"""The files of a trial, made with the command line as people make them."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ppdl_mq.cli.main import run
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import read_manifest, read_settings
from ppdl_mq.peer.folders import state_folder
from ppdl_mq.peer.identity_file import read_public_line
from ppdl_mq.training.data.prepare import load_split
from ppdl_mq.training.data.samples import Split
from ppdl_mq.training.order import rehearsal_seed
from tests.trials.exact import SAMPLE_SEED

FEATURES = 4
PASSWORD = "a-very-secret-password"  # of a broker's user, where a test needs one


class TrialFiles:
    """One folder with a manifest, and an identity and settings for each peer.

    Args:
        folder: empty.
        names: of the peers.
        broker: URL of the relay, or one for each peer; `{peer}` stands for the peer's name.
        new: options of `trial new`.
        data: options of `peer new` that say where the samples are, by peer; without it, a small table of its own.
        password_env: environment variable of every peer's broker password.
        name: of the trial.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        broker: str | Mapping[str, str] = "embedded:relay.sqlite",
        new: Sequence[str] = (),
        data: Mapping[str, Sequence[str]] | None = None,
        password_env: str | None = None,
        name: str = "small",
    ) -> None:
        self.folder = folder
        self.names = tuple(names)
        self.manifest_path = folder / f"{name}.toml"
        command_line("trial", "new", str(self.manifest_path), *new)
        for peer in names:
            key = folder / f"{peer}.key"
            command_line("identity", "new", "--name", peer, "--out", str(key))
            command_line("trial", "add-peer", str(self.manifest_path), read_public_line(key))
            if data is None:
                write_table(folder / f"{peer}.csv", seed=peer)
                where: Sequence[str] = ("--data", f"csv:{folder / peer}.csv", "--data-arg", "label=y")
            else:
                where = data[peer]
            url = (broker if isinstance(broker, str) else broker[peer]).format(peer=peer)
            if url.startswith("embedded:"):
                url = f"embedded:{folder / url.removeprefix('embedded:')}"
            password = ("--broker-password-env", password_env) if password_env else ()
            settings = ("--identity", str(key), "--broker", url, "--device", "cpu")
            command_line("peer", "new", str(self.settings_path(peer)), *settings, *password, *where)
            self.edit(peer, "[broker]", f'mode = "rehearsal"\nsample_seed = {SAMPLE_SEED}\n\n[broker]')

    @property
    def manifest(self) -> Manifest:
        """The manifest as it now stands."""
        return read_manifest(self.manifest_path)

    def settings_path(self, peer: str) -> Path:
        """Return the settings of a peer."""
        return self.folder / f"{peer}.toml"

    def run_arguments(self, peer: str, manifest: Path | None = None) -> tuple[str, ...]:
        """Return what follows `ppdl-mq` to run a peer."""
        return ("peer", "run", str(manifest or self.manifest_path), "--config", str(self.settings_path(peer)))

    def state(self, peer: str) -> Path:
        """Return the state folder of a peer in this trial."""
        return state_folder(read_settings(self.settings_path(peer)), self.manifest)

    def model(self, peer: str) -> Path:
        """Return where a peer writes its model."""
        return self.state(peer) / "model.safetensors"

    def edit(self, peer: str | None, old: str, new: str) -> None:
        """Replace text in a peer's settings, or in the manifest for None."""
        path = self.manifest_path if peer is None else self.settings_path(peer)
        text = path.read_text()
        assert old in text, f"{path.name} lacks {old!r}"
        path.write_text(text.replace(old, new, 1))

    def check_no_secret(self, shown: str) -> None:
        """Hold that nothing of what was shown is the password or a secret key."""
        assert PASSWORD not in shown
        for key in self.folder.glob("*.key"):
            written = re.search(r'^(?:secret|sealed) = "(.+)"', key.read_text(), re.MULTILINE)
            assert written is not None
            assert written[1] not in shown

    def splits(self) -> dict[str, Split]:
        """Return every peer's prepared samples."""
        return {
            peer: load_split(
                read_settings(self.settings_path(peer)).data,
                self.manifest,
                rehearsal_seed(SAMPLE_SEED, peer),
                folder=self.folder,
            )
            for peer in self.names
        }


def command_line(*arguments: str) -> None:
    """Run a command in this process; it must succeed."""
    assert run(arguments) == 0, arguments


def write_table(path: Path, *, seed: str, rows: int = 24) -> None:
    """Write a table of `FEATURES` numbers and a label y, 0 or 1, that can be learnt."""
    draw = random.Random(seed)
    lines = [",".join([*(f"x{column}" for column in range(FEATURES)), "y"])]
    for _ in range(rows):
        values = [draw.gauss(0, 1) for _ in range(FEATURES)]
        lines.append(",".join([*(f"{value:.6f}" for value in values), str(int(values[0] + values[1] > 0))]))
    path.write_text("\n".join(lines) + "\n")
