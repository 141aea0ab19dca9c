"""By Docker Compose and by Helm. The programs are stand-ins here (scripts), our code is not."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from gateway.deploy import containers
from gateway.deploy.config import Compose, DeployError, Deployment, Helm, Scalar, read
from gateway.deploy.steps import Files, Validated
from gateway.validate.target import Address
from tests.unit.test_deploy import KEY, ROOT, command, config

# Notes its arguments; says and does what files tell it to.
STAND_IN = """#!/bin/sh
echo "$@" >> {log}
cd {folder}
case "$*" in
    *" ps --quiet") cat ps 2>/dev/null || true ;;
    *" ps --all --services") cat services 2>/dev/null || true ;;
    inspect*) cat labels ;;
    *" up "*--wait*) test ! -e fail ;;
    *" down") test ! -e stuck ;;
    "status "*)
        if test -e away; then echo "Error: cluster unreachable" >&2; exit 1; fi
        if test -e status; then cat status; else echo "Error: release: not found" >&2; exit 1; fi ;;
    "upgrade "*)
        if test -e upgraded; then cp upgraded status; fi
        test ! -e refuse ;;
    "test "*) test ! -e fail ;;
    *) echo v1 ;;
esac
"""


def stand_in(folder: Path, name: str) -> Path:
    log = folder / "calls"
    (folder / "bin").mkdir()
    program = folder / "bin" / name
    program.write_text(STAND_IN.format(log=log, folder=folder), encoding="utf-8")
    program.chmod(0o700)
    return log


def runs(folder: Path, **services: list[str]) -> None:
    """These run, each started by its files; as Compose notes it on their containers."""
    label = "com.docker.compose"
    started = {f"{label}.project": "gw", f"{label}.project.working_dir": "/old"}
    lines = [
        {**started, f"{label}.service": name, f"{label}.project.config_files": ",".join(files)}
        for name, files in services.items()
    ]
    (folder / "labels").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "ps").write_text("\n".join(services), encoding="utf-8")


def compose_config(folder: Path) -> Path:
    (folder / "compose").mkdir()
    own = f"compose: {{folder: {folder}/compose, profiles: [cache]}}"
    return config(folder, f"settings: {{api_key: {KEY}, max_n: 4}}\n{own}")


@pytest.mark.parametrize("ran", [False, True], ids=["new", "ran before"])
def test_a_compose_project_that_does_not_come_up_is_put_back(tmp_path: Path, ran: bool) -> None:
    log = stand_in(tmp_path, "docker")
    path = compose_config(tmp_path)
    env = tmp_path / "compose" / ".env"
    env.write_text("SITE=x\nGATEWAY_API_KEY=old\n", encoding="utf-8")
    (tmp_path / "fail").touch()
    if ran:
        runs(tmp_path, gateway=["/old/compose.yaml", "/old/compose.gpu.yaml"])

    done = command(tmp_path, "--target", "compose", "--config", str(path))
    calls = log.read_text(encoding="utf-8").splitlines()

    assert done.returncode == 1 and "rolled back" in done.stderr
    assert env.read_text(encoding="utf-8") == "SITE=x\nGATEWAY_API_KEY=old\n"
    assert not (tmp_path / "compose" / "gateway.env").exists()
    assert calls[-1].endswith("up --detach --no-deps gateway" if ran else "down")
    assert "--profile cache" in calls[1]


def test_what_ran_comes_up_again_by_the_files_it_was_started_with(tmp_path: Path) -> None:
    """The new ones may be what failed."""
    log = stand_in(tmp_path, "docker")
    path = compose_config(tmp_path)
    (tmp_path / "fail").touch()
    plain, gpu = ["/old/compose.yaml"], ["/old/compose.yaml", "/old/compose.gpu.yaml"]
    runs(tmp_path, gateway=gpu, prometheus=gpu, proxy=plain)

    done = command(tmp_path, "--target", "compose", "--config", str(path))
    calls = log.read_text(encoding="utf-8").splitlines()

    old = "compose --project-name gw --project-directory /old"
    back = "up --detach --no-deps"
    assert "rolled back: everything" in done.stderr
    assert calls[-2:] == [
        f"{old} -f {gpu[0]} -f {gpu[1]} {back} gateway prometheus",
        f"{old} -f {plain[0]} {back} proxy",
    ]


def test_a_service_that_was_added_does_not_stay(tmp_path: Path) -> None:
    log = stand_in(tmp_path, "docker")
    path = compose_config(tmp_path)
    (tmp_path / "fail").touch()
    runs(tmp_path, gateway=["/old/compose.yaml"])
    (tmp_path / "services").write_text("gateway\nredis\n", encoding="utf-8")

    command(tmp_path, "--target", "compose", "--config", str(path))
    calls = log.read_text(encoding="utf-8").splitlines()

    (removed,) = [call for call in calls if " rm " in call]
    assert removed.endswith("--profile cache rm --stop --force redis")


def test_a_container_that_does_not_say_how_it_was_started_ends_it(tmp_path: Path) -> None:
    log = stand_in(tmp_path, "docker")
    path = compose_config(tmp_path)
    (tmp_path / "ps").write_text("c0ffee\n", encoding="utf-8")
    (tmp_path / "labels").write_text("{}\n", encoding="utf-8")

    done = command(tmp_path, "--target", "compose", "--config", str(path))

    assert done.returncode == 1 and "no telling how the project was started" in done.stderr
    assert " up " not in log.read_text(encoding="utf-8")


def test_it_is_not_said_to_be_as_before_where_it_is_not(tmp_path: Path) -> None:
    stand_in(tmp_path, "docker")
    path = compose_config(tmp_path)
    for name in ("fail", "stuck"):
        (tmp_path / name).touch()

    done = command(tmp_path, "--target", "compose", "--config", str(path))

    assert done.returncode == 1
    assert "could not be undone" in done.stderr and "as it was" not in done.stderr
    assert not (tmp_path / "compose" / ".env").exists(), "the other undos are done"


def test_compose_gets_its_own_settings_and_the_container_the_rest(tmp_path: Path) -> None:
    path = compose_config(tmp_path)
    (files,) = [step for step in containers.compose(read(path)) if isinstance(step, Files)]

    told = {path.name: text.splitlines() for path, text in files.contents.items()}
    assert told == {
        ".env": [containers.BEGIN, f"GATEWAY_API_KEY={KEY}", containers.END],
        "gateway.env": [containers.OURS, "GATEWAY_MAX_N=4"],
    }


def deployed(folder: Path, **settings: Scalar) -> dict[str, str | None]:
    """What is in both files after a deployment with these settings."""
    steps = containers.compose(Deployment(settings=settings, compose=Compose(folder=folder)))
    next(step for step in steps if isinstance(step, Files)).do()
    return {**dotenv_values(folder / ".env"), **dotenv_values(folder / "gateway.env")}


def test_a_setting_that_left_the_file_leaves_the_deployment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SITE=x\nGATEWAY_PROFILES=old\n", encoding="utf-8")
    first = deployed(tmp_path, profiles="demo", drain_timeout_s=90, max_n=4, page=False)
    second = deployed(tmp_path, page=True)

    assert first == {
        "SITE": "x",
        "GATEWAY_PROFILES": "demo",
        "GATEWAY_DRAIN_TIMEOUT_S": "90",
        "STOP_GRACE_PERIOD": "120s",
        "GATEWAY_MAX_N": "4",
        "GATEWAY_PAGE": "false",
    }
    assert second == {"SITE": "x", "GATEWAY_PAGE": "true"}


def test_what_somebody_else_wrote_into_gateway_env_is_not_lost_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "gateway.env"
    path.write_text("# mine\nGATEWAY_MAX_N=4\nGATEWAY_PAGE=false\n", encoding="utf-8")

    with pytest.raises(DeployError, match=r"gateway\.env has GATEWAY_PAGE, which would be lost"):
        deployed(tmp_path, max_n=2)
    assert deployed(tmp_path, max_n=2, page=True)["GATEWAY_PAGE"] == "true"


def test_a_block_without_its_end_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"{containers.BEGIN}\nA=1\nSITE=x\n", encoding="utf-8")

    with pytest.raises(DeployError, match="put the line"):
        deployed(tmp_path)


def test_what_compose_names_itself_goes_where_it_counts() -> None:
    """`environment:` of compose.yaml wins over gateway.env."""
    settings: dict[str, Scalar] = {"drain_timeout_s": 90.5, "metrics_open": False, "max_n": 4}
    steps = containers.compose(Deployment(settings=settings))
    (files,) = [step for step in steps if isinstance(step, Files)]
    told = {path.name: set(text.splitlines()) for path, text in files.contents.items()}

    assert told[".env"] >= {
        "GATEWAY_DRAIN_TIMEOUT_S=90.5",
        "STOP_GRACE_PERIOD=121s",
        "GATEWAY_METRICS_OPEN=false",
    }
    assert told["gateway.env"] == {containers.OURS, "GATEWAY_MAX_N=4"}


def test_each_setting_that_compose_fixes_is_asked_for_where_it_can_be_set() -> None:
    text = (ROOT / "deploy/compose/compose.yaml").read_text(encoding="utf-8")
    named = yaml.safe_load(text)["services"]["gateway"]["environment"]
    fixed = {name.removeprefix("GATEWAY_").lower() for name in named.keys() - containers.OF_COMPOSE}

    assert fixed <= containers.FIXED.keys()
    assert all(f"${{{name}" in str(named[name]) for name in containers.OF_COMPOSE)


def test_a_setting_that_compose_is_told_twice_is_refused() -> None:
    own: dict[str, Scalar] = {"GATEWAY_PROFILES": "demo"}
    twice = Deployment(settings={"profiles": "demo"}, compose=Compose(environment=own))

    with pytest.raises(DeployError, match=r"compose\.environment\.GATEWAY_PROFILES are the same"):
        containers.compose(twice)


@pytest.mark.parametrize("name", ["host", "port", "admin_host", "admin_port", "state_dir"])
def test_a_setting_that_compose_fixes_is_refused(name: str) -> None:
    with pytest.raises(DeployError, match=rf"settings\.{name} is compose\.yaml's own: "):
        containers.compose(Deployment(settings={name: "9000"}))


@pytest.mark.parametrize(
    ("before", "own", "settings", "url"),
    [
        ("", {}, {}, "http://127.0.0.1:8000"),
        ("HTTP_PORT=8080\n", {}, {}, "http://127.0.0.1:8080"),
        ("HTTP_PORT=8080\n", {"HTTP_PORT": 9000}, {}, "http://127.0.0.1:9000"),
        ("", {}, {"tls_cert": "/keys/cert.pem"}, "https://127.0.0.1:8000"),
    ],
)
def test_compose_is_validated_at_the_port_it_publishes(
    tmp_path: Path,
    before: str,
    own: dict[str, Scalar],
    settings: dict[str, Scalar],
    url: str,
) -> None:
    (tmp_path / ".env").write_text(before, encoding="utf-8")
    chosen = Compose(folder=tmp_path, environment=own)
    last = containers.compose(Deployment(settings=settings, compose=chosen))[-1]

    assert isinstance(last, Validated) and last.address == Address(url, verify=False)


def test_compose_is_asked_by_a_name_that_is_trusted(tmp_path: Path) -> None:
    settings: dict[str, Scalar] = {"trusted_hosts": "api.example.com"}
    at_port = containers.compose(Deployment(settings=settings, compose=Compose(folder=tmp_path)))[
        -1
    ]
    url = "https://api.example.com"
    at_url = containers.compose(
        Deployment(settings=settings, compose=Compose(folder=tmp_path, url=url))
    )[-1]

    assert isinstance(at_port, Validated) and at_port.address.host == "api.example.com"
    assert isinstance(at_url, Validated) and at_url.address == Address(url)


def test_no_secret_gets_into_a_charts_values() -> None:
    told = containers.open_settings(Deployment(settings={"api_key": KEY, "max_n": 4}))

    assert told == {"GATEWAY_MAX_N": "4"}
    with pytest.raises(DeployError, match=r"settings\.redis_url is a secret"):
        containers.open_settings(Deployment(settings={"redis_url": "redis://:pw@x/0"}))


@pytest.mark.parametrize(
    ("revision", "undone"),
    [(None, "uninstall gateway"), (7, "rollback gateway 7 --wait --timeout 99s")],
)
def test_a_release_whose_test_fails_is_taken_back(
    tmp_path: Path, revision: int | None, undone: str
) -> None:
    log = stand_in(tmp_path, "helm")
    (tmp_path / "fail").touch()
    if revision is not None:
        (tmp_path / "status").write_text(released(revision, "deployed"), encoding="utf-8")
    (tmp_path / "upgraded").write_text(released((revision or 0) + 1, "deployed"), encoding="utf-8")

    done = command(tmp_path, "--target", "helm", "--config", str(config(tmp_path, "wait_s: 99")))
    calls = log.read_text(encoding="utf-8").splitlines()

    assert done.returncode == 1, done.stdout
    assert any(
        "upgrade --install gateway" in call and "--atomic --wait --timeout 99s" in call
        for call in calls
    )
    assert calls[-1] == f"{undone} --namespace default"
    assert not (tmp_path / "deploy.values.yaml").exists()


def released(revision: int, status: str) -> str:
    """As `helm status --output json` has it."""
    return json.dumps({"name": "gateway", "info": {"status": status}, "version": revision})


@pytest.mark.parametrize(
    ("after", "undone"),
    [
        ((9, "deployed"), []),
        ((7, "deployed"), []),
        ((8, "deployed"), ["rollback gateway 7 --wait --timeout 99s --namespace default"]),
        ((9, "pending-rollback"), ["rollback gateway 7 --wait --timeout 99s --namespace default"]),
    ],
    ids=["rolled back", "not begun", "killed late", "killed in the way back"],
)
def test_a_failed_upgrade_is_asked_whether_it_was_rolled_back(
    tmp_path: Path, after: tuple[int, str], undone: list[str]
) -> None:
    log = stand_in(tmp_path, "helm")
    (tmp_path / "refuse").touch()
    (tmp_path / "status").write_text(released(7, "deployed"), encoding="utf-8")
    (tmp_path / "upgraded").write_text(released(*after), encoding="utf-8")

    done = command(tmp_path, "--target", "helm", "--config", str(config(tmp_path, "wait_s: 99")))
    calls = log.read_text(encoding="utf-8").splitlines()

    assert done.returncode == 1 and "rolled back" in done.stderr
    assert [call for call in calls if call.startswith(("rollback", "uninstall"))] == undone


def test_a_cluster_that_does_not_tell_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """A release that was there would be uninstalled as a new one that failed."""
    log = stand_in(tmp_path, "helm")
    (tmp_path / "away").touch()

    done = command(tmp_path, "--target", "helm", "--config", str(config(tmp_path, "wait_s: 99")))

    assert done.returncode == 1 and "cluster unreachable" in done.stderr
    assert "upgrade" not in log.read_text(encoding="utf-8")


def test_helm_has_the_time_for_an_upgrade_and_for_its_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its way back, it leaves a release that is pending."""
    limits: dict[str, float] = {}

    def ran(line: list[str], timeout: float, **_: object) -> subprocess.CompletedProcess[str]:
        limits[line[1]] = timeout
        return subprocess.CompletedProcess(line, 0, released(1, "deployed"), "")

    monkeypatch.setattr(subprocess, "run", ran)
    containers.Released(Deployment(wait_s=900), tmp_path / "values.yaml").do()

    assert limits["upgrade"] > 2 * 900 and limits["test"] > 900


def values_of(deployment: Deployment) -> dict[str, Any]:
    (files,) = [step for step in containers.helm(deployment) if isinstance(step, Files)]
    found: dict[str, Any] = yaml.safe_load(next(iter(files.contents.values())))
    return found


def test_settings_of_both_places_reach_the_chart_and_none_is_said_twice() -> None:
    values = {"profiles": ["demo"], "settings": {"GATEWAY_PAGE": "false"}}
    both = Deployment(settings={"max_n": 4}, helm=Helm(values=values))
    twice = Deployment(settings={"page": True}, helm=Helm(values=values))
    odd = Deployment(helm=Helm(values={"settings": ["GATEWAY_PAGE"]}))

    assert values_of(both) == {
        "profiles": ["demo"],
        "settings": {"GATEWAY_MAX_N": "4", "GATEWAY_PAGE": "false"},
    }
    with pytest.raises(
        DeployError, match=r"settings\.page and helm\.values\.settings\.GATEWAY_PAGE"
    ):
        containers.helm(twice)
    with pytest.raises(DeployError, match="no mapping"):
        containers.helm(odd)
