"""What a person can get wrong, through the real command line: one clear sentence, the right exit code, no secret."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ppdl_mq.cli.main import run
from ppdl_mq.config import limits
from ppdl_mq.config.reading import read_settings
from ppdl_mq.errors import ManifestMismatch
from ppdl_mq.protocol.phases import Phase
from tests.processes import Processes
from tests.rabbit import RabbitNode
from tests.transport.relays import eventually
from tests.trials.beside import Beside
from tests.trials.files import PASSWORD, TrialFiles, command_line

CONFIG, IDENTITY, WORK, RELAY, REMOTE, RUNNING, JOURNAL = 3, 4, 5, 6, 7, 8, 9


def check_refusal(code: int, shown: str, expected_code: int, *words: str) -> None:
    """Hold what a refused command showed to what a person should see."""
    lines = [line for line in shown.splitlines() if not line[:2].isdigit()]  # without the log
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == expected_code, shown
    assert len(errors) == 1, shown
    assert errors[0].endswith("."), errors
    assert len([line for line in lines if line.startswith("hint: ")]) <= 1, shown
    assert "Traceback" not in shown
    for word in words:
        assert word in shown, shown


def refused(
    files: TrialFiles, capfd: pytest.CaptureFixture[str], expected_code: int, *words: str, peer: str = "anna"
) -> str:
    """Run a peer, which must refuse, and return what it showed."""
    capfd.readouterr()
    code = run(files.run_arguments(peer))
    captured = capfd.readouterr()
    check_refusal(code, captured.err, expected_code, *words)
    files.check_no_secret(captured.out + captured.err)
    assert captured.out == ""
    return captured.err


# --- files that people write -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("batch_size = 32\n", "", ("training.batch_size", "missing")),
        ("batch_size = 32", "batch_sise = 32", ("batch_sise", "batch_size")),
        ("epochs = 2", "epochs = -2", ("training.epochs",)),
        ("epochs = 2", 'epochs = "two"', ("training.epochs",)),
        ("learning_rate = 0.1", "learning_rate = nan", ("learning_rate",)),
        ('protocol = "server-aided"', 'protocol = "server-added"', ("protocol", "server-aided")),
        ("shape = [4]", "shape = [4", ("small.toml",)),
    ],
)
def test_a_manifest_that_does_not_hold(
    files: TrialFiles, capfd: pytest.CaptureFixture[str], old: str, new: str, words: tuple[str, ...]
) -> None:
    files.edit(None, old, new)
    refused(files, capfd, CONFIG, *words)


def test_a_manifest_that_is_not_there(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    files.manifest_path.unlink()
    refused(files, capfd, CONFIG, "small.toml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('device = "cpu"', 'device = "gpu"', ("device", "cuda")),
        ('device = "cpu"', 'devise = "cpu"', ("devise", "device")),
        ('\nmode = "rehearsal"', '\nmode = "production"', ("sample_seed",)),
        ('url = "embedded:', 'url = "http:', ("URL", "amqp://")),
        ('url = "embedded:', f'url = "amqp://anna:{PASSWORD}@127.0.0.1/', ("password",)),
    ],
)
def test_settings_that_do_not_hold(
    files: TrialFiles, capfd: pytest.CaptureFixture[str], old: str, new: str, words: tuple[str, ...]
) -> None:
    files.edit("anna", old, new)
    refused(files, capfd, CONFIG, *words)


# --- model and data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ppdl_mq.training.models:mlp", "nowhere.models:net", ("nowhere", "models in peer.toml")),
        ("ppdl_mq.training.models:mlp", "ppdl_mq.training.models:mpl", ("mpl", "Did you mean mlp?")),
        ("ppdl_mq.training.models:mlp", "os:system", ("os:system", "models in peer.toml")),
        ("ppdl_mq.training.models:mlp", "unittest.__main__:main", ("unittest.__main__", "models in peer.toml")),
        ("ppdl_mq.training.models:mlp", "ppdl_mq.training.models:torch.hub.load", ("torch.hub.load", "no dots")),
        ("ppdl_mq.training.models:mlp", "ppdl_mq.training.models:ModelError", ("not defined in",)),
        ("hidden = [16]", "hiden = [16]", ("hiden", "hidden")),
        ("inputs = 4", "inputs = 5", ("model",)),
        ("outputs = 2", "outputs = 3", ("shape",)),
    ],
)
def test_a_model_that_cannot_be_used(
    files: TrialFiles, capfd: pytest.CaptureFixture[str], old: str, new: str, words: tuple[str, ...]
) -> None:
    files.edit(None, old, new)
    refused(files, capfd, WORK, *words)


def test_a_model_that_would_run_a_command(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    """`reduce_graph_module` is annotated to return a module, and executes the text it is given."""
    trace = files.folder / "trace"
    files.edit(None, "ppdl_mq.training.models:mlp", "torch.fx.graph_module:reduce_graph_module")
    for line in ("inputs = 4\n", "hidden = [16]\n", "outputs = 2\n"):
        files.edit(None, line, "")
    source = f"open({str(trace)!r}, 'w').close()\\n"
    body = "def forward(self, x):\\n    return x\\n"
    files.edit(
        None, "[model.arguments]", f'[model.arguments]\nimport_block = "{source}"\nbody = {{ _code = "{body}" }}'
    )
    refused(files, capfd, WORK, "reduce_graph_module", "models in peer.toml")
    assert not trace.exists()
    # The same file runs it where the organisation allows it: what is refused above is refused by the list alone.
    files.edit("anna", "[broker]", 'models = ["torch.fx.graph_module"]\n\n[broker]')
    refused(files, capfd, WORK)
    assert trace.exists()


def test_a_model_that_exits(
    files: TrialFiles, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (files.folder / "model_that_exits.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(str(files.folder))
    files.edit(None, "ppdl_mq.training.models:mlp", "model_that_exits:net")
    files.edit("anna", "[broker]", 'models = ["model_that_exits"]\n\n[broker]')
    refused(files, capfd, WORK, "model_that_exits", "SystemExit")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("x0,x1,x2,x3,y\n1,2,nan,4,1\n1,2,3,4,0\n", ("x2", "Row 2")),
        ("x0,x1,x2,x3,y\n1,2,,4,1\n", ("x2", "no value")),
        ("x0,x1,x2,x3,y\n1,2,three,4,1\n", ("x2", "no number")),
        ("x0,x1,y\n1,2,1\n1,2,0\n", ("2 columns", "4")),
        ("x0,x1,x2,x3,y\n1,2,3,4,7\n", ("label", "classes")),
        ("x0,x1,x2,x3,y\n1,2,3,4,yes\n", ("label", "labels")),
        ("x0,x1,x2,x3,y\n", ("no rows",)),
        ("", ("no rows",)),
        ("a,b\n1,2\n", ("'y'",)),
        (None, ("anna.csv",)),
    ],
)
def test_data_that_cannot_be_used(
    files: TrialFiles, capfd: pytest.CaptureFixture[str], table: str | None, words: tuple[str, ...]
) -> None:
    path = files.folder / "anna.csv"
    path.unlink()
    if table is not None:
        path.write_text(table)
    shown = refused(files, capfd, WORK, *words)
    assert "three" not in shown  # never a cell of somebody's data


def test_weights_that_become_nan(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    files.edit(None, "learning_rate = 0.1", "learning_rate = 1e38")
    files.edit(None, "batch_size = 32", "batch_size = 4")
    with Beside(files, "bert"):
        refused(files, capfd, WORK, "NaN", "learning_rate")
    assert not list(files.folder.glob("**/model.safetensors"))


def test_a_holdout_loss_that_is_not_finite(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    """Anna's one step leaves weights that are finite, and a loss that JSON cannot hold; Bert's step makes them NaN."""
    files.edit(None, "learning_rate = 0.1", "learning_rate = 1e38")
    with Beside(files, "anna") as anna:
        refused(files, capfd, WORK, "NaN", "learning_rate", peer="bert")
    assert anna.error is None


# --- identity --------------------------------------------------------------------------------------------------------


def test_an_identity_that_is_not_in_the_manifest(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    (files.folder / "anna.key").unlink()
    command_line("identity", "new", "--name", "carl", "--out", str(files.folder / "anna.key"))
    refused(files, capfd, IDENTITY, "carl", "manifest")


def test_new_keys_under_an_old_name(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    (files.folder / "anna.key").unlink()
    command_line("identity", "new", "--name", "anna", "--out", str(files.folder / "anna.key"))
    refused(files, capfd, IDENTITY, "anna", "manifest")


def test_a_key_file_that_others_can_read(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    (files.folder / "anna.key").chmod(0o644)
    refused(files, capfd, IDENTITY, "anna.key", "chmod 600")


def test_a_device_that_is_none(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    """`--device` stands in for the one in the settings."""
    capfd.readouterr()
    code = run((*files.run_arguments("anna"), "--device", "abacus"))
    check_refusal(code, capfd.readouterr().err, CONFIG, "abacus", "cuda")


def test_a_key_file_that_is_not_there(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    (files.folder / "anna.key").unlink()
    refused(files, capfd, IDENTITY, "anna.key")


def test_a_wrong_passphrase(
    files: TrialFiles, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (files.folder / "anna.key").unlink()
    monkeypatch.setenv("RIGHT", "right-passphrase")
    command_line(
        "identity", "new", "--name", "anna", "--out", str(files.folder / "anna.key"), "--passphrase-env", "RIGHT"
    )
    files.edit("anna", "state_dir", 'passphrase_env = "GIVEN"\nstate_dir')
    refused(files, capfd, IDENTITY, "GIVEN")  # not set
    monkeypatch.setenv("GIVEN", PASSWORD)
    refused(files, capfd, IDENTITY, "passphrase")


# --- the relay -------------------------------------------------------------------------------------------------------


def test_a_broker_that_never_comes_up(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    files.edit("anna", f'url = "embedded:{files.folder}/relay.sqlite"', 'url = "amqp://127.0.0.1:1/"\nwait_s = 0.3')
    shown = refused(files, capfd, RELAY, "127.0.0.1:1", "Is the broker up")
    assert shown.count("Waiting for the relay") == 1


def test_a_relay_file_that_is_something_else(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    (files.folder / "relay.sqlite").write_text("a shopping list, longer than the hundred bytes of a header " * 4)
    refused(files, capfd, RELAY, "relay.sqlite")


@pytest.fixture
def password_user(rabbit: RabbitNode, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a user with a password, which is in the environment variable BROKER_PASSWORD."""
    if "trials-user" not in rabbit.ctl("list_users", "--silent"):
        rabbit.add_user("trials-user", PASSWORD)
    monkeypatch.setenv("BROKER_PASSWORD", PASSWORD)
    return rabbit.url("trials-user")


def test_a_wrong_broker_password(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], password_user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = TrialFiles(tmp_path, ("anna", "bert"), broker=password_user, password_env="BROKER_PASSWORD")
    monkeypatch.setenv("BROKER_PASSWORD", "wrong-password")
    assert "wrong-password" not in refused(files, capfd, RELAY, "refuses the password of user 'trials-user'")
    monkeypatch.delenv("BROKER_PASSWORD")
    refused(files, capfd, CONFIG, "BROKER_PASSWORD")


def test_a_wrong_vhost(tmp_path: Path, capfd: pytest.CaptureFixture[str], password_user: str) -> None:
    url = password_user.rstrip("/") + "/nowhere"
    files = TrialFiles(tmp_path, ("anna", "bert"), broker=url, password_env="BROKER_PASSWORD")
    refused(files, capfd, RELAY, "'nowhere'", "rabbitmqctl.sh")


# --- other peers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "fields"),
    [
        ("learning_rate = 0.1", "learning_rate = 0.2", ("training.learning_rate",)),
        ("hidden = [16]", "hidden = [8]", ("model.arguments.hidden",)),
    ],
)
def test_manifests_that_differ(
    files: TrialFiles,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    fields: tuple[str, ...],
) -> None:
    monkeypatch.setattr(limits, "MISMATCH_GRACE_S", 0.5)
    theirs = files.folder / "theirs.toml"
    theirs.write_text(files.manifest_path.read_text().replace(old, new))
    with Beside(files, "bert", manifest=theirs) as bert:
        refused(files, capfd, REMOTE, "bert", *fields, "ppdl-mq trial check")
        bert.join()
    assert isinstance(bert.error, ManifestMismatch)
    assert (bert.error.peer, bert.error.fields) == ("anna", fields)
    for journal in files.folder.glob("*.state/*"):
        assert not (journal / "progress.jsonl").exists()  # nobody has trained
        assert not (journal / "model.safetensors").exists()


def test_two_processes_with_one_identity(
    files: TrialFiles, capfd: pytest.CaptureFixture[str], started: Processes
) -> None:
    first = started.start("--debug", *files.run_arguments("anna"))
    first.wait_for("Now awaiting hellos")
    refused(files, capfd, RUNNING, "Another process already runs this trial", "ppdl-mq peer status")
    files.edit("anna", "anna.state", "copy.state")
    refused(files, capfd, RUNNING, "Another process reads", "Stop one of them")
    first.interrupt()
    assert first.wait().code == 130


def status_phase(folder: Path) -> str | None:
    """Return the phase that a peer last wrote down, which it does after its journal."""
    try:
        phase: str = json.loads((folder / "status.json").read_text())["phase"]
    except (OSError, ValueError):
        return None
    return phase


def test_a_copied_state_folder_at_a_broker(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], rabbit: RabbitNode
) -> None:
    files = TrialFiles(tmp_path, ("anna", "bert"), broker=rabbit.url(), name="copied")
    with Beside(files, "anna") as anna:
        eventually(lambda: anna.phase, Phase.AWAITING_HELLOS)
        # On disk, too: a copy of a journal that has begun nothing would begin anew, and find the inbox taken.
        eventually(lambda: status_phase(files.state("anna")), Phase.AWAITING_HELLOS.value)
        shutil.copytree(files.folder / "anna.state", files.folder / "copy.state")
        files.edit("anna", "anna.state", "copy.state")
        refused(files, capfd, JOURNAL, "does not resume", "is a copy")
    with rabbit.channel() as channel:
        for queue in ("anna", "weights"):
            channel.queue_delete(f"ppdl.copied.{queue}")


def test_a_trial_that_has_ended(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    with Beside(files, "bert") as bert:
        assert run(files.run_arguments("anna")) == 0
        bert.join()
    before = files.model("anna").read_bytes()
    capfd.readouterr()
    for _ in range(2):
        assert run(files.run_arguments("anna")) == 0
        said = capfd.readouterr().out
        assert "has ended" in said
        assert "ppdl-mq trial renew" in said
    assert files.model("anna").read_bytes() == files.model("bert").read_bytes() == before


def test_settings_are_read_as_written(files: TrialFiles) -> None:
    """The edits above work on these files: each of them must be right before."""
    assert read_settings(files.settings_path("anna")).mode == "rehearsal"
    assert files.manifest.peer_names == ("anna", "bert")
