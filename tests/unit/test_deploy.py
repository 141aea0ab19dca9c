"""`gateway deploy`: all of it or nothing, whatever the target."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.deploy import local
from gateway.deploy.config import DeployError, Deployment, Scalar, read
from gateway.deploy.steps import Files, NotUndone, Step, Tool, carry_out
from tests.scripted import PATIENCE_S

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-sixteen-characters"


class Noted:
    """A step that notes what becomes of it."""

    def __init__(
        self, name: str, notes: list[str], fails: bool = False, stays: bool = False
    ) -> None:
        self.name, self.notes, self.fails, self.stays = name, notes, fails, stays
        self.plan = name

    def do(self) -> str:
        self.notes.append(f"do {self.name}")
        if self.fails:
            raise DeployError("no")
        return self.name

    def undo(self) -> None:
        self.notes.append(f"undo {self.name}")
        if self.stays:
            raise OSError(f"{self.name} stays")


def test_what_fails_is_undone_with_all_before_it_in_reverse() -> None:
    notes: list[str] = []
    steps: list[Step] = [Noted("a", notes), Noted("b", notes, fails=True), Noted("c", notes)]

    with pytest.raises(DeployError):
        carry_out(steps, lambda text: None)

    assert notes == ["do a", "do b", "undo b", "undo a"]


def test_what_cannot_be_undone_is_told_beside_the_first_error_and_stops_no_other() -> None:
    notes: list[str] = []
    steps: list[Step] = [
        Noted("a", notes),
        Noted("b", notes, stays=True),
        Noted("c", notes, fails=True, stays=True),
    ]

    with pytest.raises(NotUndone) as raised:
        carry_out(steps, lambda text: None)

    assert str(raised.value) == "no; and could not be undone: c: c stays; b: b stays"
    assert notes[-3:] == ["undo c", "undo b", "undo a"]


def test_nothing_is_undone_when_all_went_well() -> None:
    notes: list[str] = []
    carry_out([Noted("a", notes), Noted("b", notes)], lambda text: None)

    assert notes == ["do a", "do b"]


def test_files_are_private_and_put_back_as_they_were(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "sub" / "new"
    old.write_text("before", encoding="utf-8")
    old.chmod(0o640)
    files = Files({old: "after", new: "after"})

    files.do()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (old, new)}
    told = old.read_text(encoding="utf-8")
    files.undo()

    assert (told, modes) == ("after", {0o600})
    assert old.read_text(encoding="utf-8") == "before" and not new.exists()
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_a_file_that_cannot_be_put_back_keeps_no_other_from_it(tmp_path: Path) -> None:
    gone, other = tmp_path / "sub" / "gone", tmp_path / "other"
    gone.parent.mkdir()
    for path in (gone, other):
        path.write_text("before", encoding="utf-8")
    files = Files({gone: "after", other: "after"})
    files.do()
    gone.unlink()
    gone.parent.rmdir()

    with pytest.raises(DeployError, match="gone is not as it was: No such file"):
        files.undo()
    assert other.read_text(encoding="utf-8") == "before"


def test_a_program_that_is_missing_is_told_with_the_remedy() -> None:
    with pytest.raises(DeployError, match=r"no-such-program is not installed\. Get it\."):
        Tool(["no-such-program"], "Get it.").do()


def config(folder: Path, text: str) -> Path:
    path = folder / "deploy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_secrets_come_from_the_environment(tmp_path: Path) -> None:
    path = config(tmp_path, "settings: {api_key: '${THE_KEY}', metrics_open: true}")

    told = read(path, {"THE_KEY": KEY})

    assert told.variables() == {"GATEWAY_API_KEY": KEY, "GATEWAY_METRICS_OPEN": "true"}
    assert told.key == KEY
    with pytest.raises(DeployError, match="THE_KEY is asked for"):
        read(path, {})


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deploy.yaml"
    path.write_bytes(b"settings: {jwt_audience: \xff\xfe}")

    with pytest.raises(DeployError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize(
    ("names", "host"),
    [
        ("api.example.com, other", "api.example.com"),
        ("*.example.com", "validation.example.com"),
        ("::1", "[::1]"),
        ("", None),
    ],
)
def test_a_validation_by_address_calls_by_a_name_that_is_trusted(
    names: str, host: str | None
) -> None:
    told = Deployment(settings={"trusted_hosts": names})

    assert told.host == host


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("settings: {prot: 8000}", "settings.prot is no setting"),
        ("locale: {}", "locale: Extra inputs"),
        ("wait_s: -1", "wait_s"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DeployError, match=told):
        read(config(tmp_path, text))


def test_the_shell_reads_the_env_file_as_it_was_meant(tmp_path: Path) -> None:
    odd = 'it\'s $HOME; `x` "y"'
    place = local.Place(tmp_path, Deployment(settings={"jwt_audience": odd}))
    Files(place.contents()).do()
    command = f'. {tmp_path}/gateway.env; printf %s "$GATEWAY_JWT_AUDIENCE"'

    assert subprocess.check_output(["sh", "-c", command], text=True) == odd


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 9000}, "http://127.0.0.1:9000"),
        ({"host": "::1"}, "http://[::1]:8000"),
    ],
)
def test_where_a_local_one_is_asked(tmp_path: Path, settings: dict[str, Scalar], url: str) -> None:
    assert local.Place(tmp_path, Deployment(settings=settings)).url == url


def test_another_programs_pid_is_not_stopped(tmp_path: Path) -> None:
    place = local.Place(tmp_path, Deployment())
    place.pid_file.write_text(str(os.getpid()), encoding="ascii")

    assert place.running() is None


def command(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway", "deploy", *args],
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE_S,
        check=False,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "PATH": f"{folder}/bin:{kept['PATH']}"},
    )


@pytest.mark.parametrize("target", ["local", "compose", "helm"])
def test_a_dry_run_says_what_would_be_done_and_touches_nothing(tmp_path: Path, target: str) -> None:
    path = config(tmp_path, f"settings: {{api_key: {KEY}}}\nlocal: {{folder: {tmp_path}/here}}")

    done = command(tmp_path, "--target", target, "--config", str(path), "--dry-run")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1. ") and KEY not in done.stdout
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_doctor_fails_is_not_deployed(tmp_path: Path) -> None:
    path = config(tmp_path, f"settings: {{profiles: none}}\nlocal: {{folder: {tmp_path}/here}}")

    done = command(tmp_path, "--target", "local", "--config", str(path))

    assert done.returncode == 1
    assert "rolled back" in done.stderr and "no profile named 'none'" in done.stderr
    assert not (tmp_path / "here" / "gateway.env").exists()
