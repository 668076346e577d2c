"""Another peer in a thread of this process, so that the command line under test is not alone in its trial."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from ppdl_mq.config.reading import read_manifest, read_settings
from ppdl_mq.errors import Interrupted
from ppdl_mq.peer.identity_file import read_identity
from ppdl_mq.peer.runner import Runner
from ppdl_mq.peer.running import run_peer
from ppdl_mq.protocol.phases import Phase
from tests.trials.files import TrialFiles

SOON_S = 60.0


class Beside:
    """Runs one peer of a trial from `with` to the end of the block.

    Args:
        files: of the trial.
        peer: which.
        manifest: another one than the trial's.
    """

    def __init__(self, files: TrialFiles, peer: str, *, manifest: Path | None = None) -> None:
        self.error: BaseException | None = None
        self._files = files
        self._peer = peer
        self._manifest = manifest or files.manifest_path
        self._ready = threading.Event()
        self._runner: Runner | None = None
        self._thread = threading.Thread(target=self._run, name=peer, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(SOON_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            self._runner.stop()
        self.join()

    @property
    def phase(self) -> Phase:
        """Where the peer is in its trial."""
        assert self._runner is not None, self.error
        return self._runner.state.phase

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(SOON_S)
        assert not self._thread.is_alive(), f"{self._peer} is still running"

    def _run(self) -> None:
        settings = read_settings(self._files.settings_path(self._peer))
        try:
            identity = read_identity(settings.identity)
            run_peer(
                read_manifest(self._manifest), settings, identity, folder=self._files.folder, on_ready=self._on_ready
            )
        except Interrupted:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    def _on_ready(self, runner: Runner) -> None:
        self._runner = runner
        self._ready.set()
