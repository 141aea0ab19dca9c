"""By Docker Compose or Helm, with the files of deploy/. The programs do the work; we take back what fails."""

import io
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

from gateway.deploy.config import DeployError, Deployment, text_of
from gateway.deploy.steps import TOOL_S, Files, Step, Tool, Validated, called
from gateway.settings import PREFIX, Settings
from gateway.validate.target import Address

GET_DOCKER = "Install Docker Engine with its Compose plugin, and let this user reach it."
GET_HELM = "Install Helm 3 or later, and let KUBECONFIG name the cluster."
OF_COMPOSE = {
    *("GATEWAY_API_KEY", "GATEWAY_PROFILES", "GATEWAY_REDIS_URL"),
    *("GATEWAY_DRAIN_TIMEOUT_S", "GATEWAY_METRICS_OPEN"),
}
# What compose.yaml fixes, and what is meant by somebody who sets it.
FIXED = {
    "host": "the container listens to other containers; Compose publishes it to this machine only",
    "port": "the container's is 8000; the port of this machine is compose.environment.HTTP_PORT",
    "admin_host": "the admin listener is for other containers and is not published",
    "admin_port": "Prometheus of these files asks 8001",
    "state_dir": "it is the volume state",
}
MARGIN_S = 60  # a program's own time limit comes first
GRACE_S = 30  # Compose kills so long after the drain
NO_RELEASE = "release: not found"  # Helm's words
DEPLOYED = "deployed"
LABEL = "com.docker.compose"  # Compose notes on each container by what it was started
# In .env others have lines, too; gateway.env is ours whole.
BEGIN = "# Of `gateway deploy` down to its other mark: written anew each time."
END = "# `gateway deploy` wrote down to here."
OURS = "# Written by `gateway deploy`, anew each time: settings are in its deploy.yaml."


def compose(deployment: Deployment) -> list[Step]:
    """`.env`, `up --wait`, validation; a project that ran before is brought up again as it was.

    Raises:
        DeployError: a setting that compose.yaml fixes.
    """
    for name, why in FIXED.items():
        if name in deployment.settings:
            raise DeployError(f"settings.{name} is compose.yaml's own: {why}")
    chosen = deployment.compose
    folder = chosen.folder.expanduser().absolute()
    command = ["docker", "compose", "--project-directory", str(folder)]
    for name in chosen.files:
        command += ["-f", str(folder / name)]
    for name in chosen.profiles:
        command += ["--profile", name]
    # compose.yaml names some settings itself and those win; the rest goes into the container by an env file.
    variables = deployment.variables()
    named = {name: text for name, text in variables.items() if name in OF_COMPOSE}
    own = {name: text_of(value) for name, value in chosen.environment.items()}
    refuse_twice(named, own, "compose.environment")
    given = {**named, **grace(named), **own}
    more = {name: text for name, text in variables.items() if name not in OF_COMPOSE}
    before = WasUp(command, deployment.wait_s, given)
    shared = merged(folder / ".env", given)
    files = {folder / ".env": shared, folder / "gateway.env": whole(folder / "gateway.env", more)}
    # Its certificate is for the name callers use, not for the address it is asked at here.
    here = Address(url_here(shared, "GATEWAY_TLS_CERT" in variables), False, deployment.host)
    address = here if chosen.url is None else Address(chosen.url)
    return [
        Tool(["docker", "compose", "version"], GET_DOCKER),
        before,
        Files(files),
        Tool([*command, "config", "--quiet"], "Mend what it names in deploy.yaml."),
        Up(command, deployment.wait_s, before),
        Validated(address, deployment.key, deployment.wait_s, Path.cwd()),
    ]


def refuse_twice(ours: Mapping[str, str], more: Mapping[str, Any], where: str) -> None:
    """Raises DeployError for a setting that is also said in `where`: one of the two would be lost."""
    if twice := sorted(ours.keys() & more.keys()):
        name = twice[0].removeprefix(PREFIX).lower()
        raise DeployError(f"settings.{name} and {where}.{twice[0]} are the same: say it once")


def grace(variables: Mapping[str, str]) -> dict[str, str]:
    """Compose waits longer than the gateway drains."""
    drain = variables.get("GATEWAY_DRAIN_TIMEOUT_S")
    try:
        return (
            {} if drain is None else {"STOP_GRACE_PERIOD": f"{math.ceil(float(drain)) + GRACE_S}s"}
        )
    except (ValueError, OverflowError) as error:
        raise DeployError(f"settings.drain_timeout_s is no number of seconds: {drain}") from error


def url_here(env_text: str, tls: bool) -> str:
    """Where compose.yaml publishes it, by the new .env."""
    port = dotenv_values(stream=io.StringIO(env_text)).get("HTTP_PORT") or "8000"
    return f"{'https' if tls else 'http'}://127.0.0.1:{port}"


def merged(path: Path, given: Mapping[str, str]) -> str:
    """The file's text with our block anew, so that what left deploy.yaml leaves it, too.

    Lines outside it are others' and stay, but for those of the same name.

    Raises:
        DeployError: it cannot be read, or the block's end is gone.
    """
    old = lines_of(path)
    if BEGIN in old:
        first = old.index(BEGIN)
        if END not in old[first:]:
            raise DeployError(
                f"{path}: put the line {END!r} back below what `gateway deploy` wrote"
            )
        del old[first : old.index(END, first) + 1]
    kept = [line for line in old if line.partition("=")[0].strip() not in given]
    return "\n".join([*kept, BEGIN, *assignments(given), END, ""])


def whole(path: Path, given: Mapping[str, str]) -> str:
    """The file's text, nothing of the old one left.

    Raises:
        DeployError: somebody else wrote it, and something in it would be lost.
    """
    old = lines_of(path)
    if OURS not in old[:1]:
        there = dotenv_values(stream=io.StringIO("\n".join(old)))
        if lost := sorted(there.keys() - given.keys()):
            raise DeployError(
                f"{path} has {lost[0]}, which would be lost: move it to `settings` of deploy.yaml"
            )
    return "\n".join([OURS, *assignments(given), ""])


def assignments(given: Mapping[str, str]) -> list[str]:
    return [f"{name}={shlex.quote(text)}" for name, text in given.items()]


def lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, UnicodeError) as error:
        raise DeployError(f"{path} cannot be read: {error}") from error


def brought_up_by(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The command of the files that a container was started with, which need not be today's.

    Its profiles are not noted: whoever names a service needs none.
    """
    folder = Path(labels[f"{LABEL}.project.working_dir"])
    files = labels[f"{LABEL}.project.config_files"].split(",")
    envs = labels.get(f"{LABEL}.project.environment_file", "")
    return (
        *("docker", "compose", "--project-name", labels[f"{LABEL}.project"]),
        *("--project-directory", str(folder)),
        *(word for name in files for word in ("-f", str(folder / name))),
        *(word for name in envs.split(",") if name for word in ("--env-file", str(folder / name))),
    )


@dataclass
class WasUp:
    """Remembers what of the project runs and by which files; its undo comes when those are as they were."""

    command: list[str]
    wait_s: float
    given: Mapping[str, str]  # compose.yaml refuses to be read without them
    running: dict[tuple[str, ...], set[str]] = field(default_factory=dict)  # command -> services
    plan: str = "see whether the project runs already, and by which files"

    @property
    def services(self) -> set[str]:
        return set[str]().union(*self.running.values())

    def do(self) -> str:
        containers = called([*self.command, "ps", "--quiet"], TOOL_S, self.given).split()
        if not containers:
            return "it did not run"
        ask = ["docker", "inspect", "--format", "{{json .Config.Labels}}", *containers]
        try:
            for line in called(ask, TOOL_S).splitlines():
                labels = json.loads(line)
                by = self.running.setdefault(brought_up_by(labels), set())
                by.add(labels[f"{LABEL}.service"])
        except (ValueError, KeyError) as error:
            raise DeployError(f"no telling how the project was started: {error}") from error
        return f"it ran already: {', '.join(sorted(self.services))}"

    def undo(self) -> None:
        for command, services in self.running.items():
            called([*command, "up", "--detach", "--no-deps", *sorted(services)], self.wait_s)


@dataclass(frozen=True)
class Up:
    command: list[str]
    wait_s: float
    before: WasUp

    @property
    def line(self) -> list[str]:
        return [*self.command, "up", "--detach", "--wait", "--wait-timeout", f"{self.wait_s:.0f}"]

    @property
    def plan(self) -> str:
        return shlex.join(self.line)

    def do(self) -> str:
        called(self.line, self.wait_s + MARGIN_S)
        return "up, and healthy"

    def undo(self) -> None:
        """What did not run goes, by the files that brought it; what ran is `before`'s."""
        if not self.before.running:
            called([*self.command, "down"], self.wait_s)
            return
        there = called([*self.command, "ps", "--all", "--services"], TOOL_S).split()
        if added := sorted(set(there) - self.before.services):
            called([*self.command, "rm", "--stop", "--force", *added], self.wait_s)


def helm(deployment: Deployment) -> list[Step]:
    """`helm upgrade --install --atomic`, then `helm test`; a failed test rolls back, too."""
    chosen = deployment.helm
    values = Path("deploy.values.yaml").absolute()
    content = {**chosen.values, "settings": chart_settings(deployment)}
    steps: list[Step] = [
        Tool(["helm", "version", "--short"], GET_HELM),
        Files({values: yaml.safe_dump(content, sort_keys=False)}),
        Released(deployment, values),
    ]
    if chosen.url is not None:
        steps.append(Validated(Address(chosen.url), deployment.key, deployment.wait_s, Path.cwd()))
    return steps


def chart_settings(deployment: Deployment) -> dict[str, Any]:
    """`settings` of the chart: ours and those of helm.values.

    Raises:
        DeployError: one is said twice, or is no setting of the chart's form.
    """
    ours, more = open_settings(deployment), deployment.helm.values.get("settings") or {}
    if not isinstance(more, dict):
        raise DeployError("helm.values.settings is no mapping of GATEWAY_* to values")
    refuse_twice(ours, more, "helm.values.settings")
    return {**ours, **more}


def open_settings(deployment: Deployment) -> dict[str, str]:
    """Those for the chart's ConfigMap. The key is left out: it is only what the validation calls with.

    Raises:
        DeployError: another secret is among them, and a ConfigMap is none.
    """
    secret = {
        name for name, each in Settings.model_fields.items() if "Secret" in str(each.annotation)
    }
    if found := sorted(secret & deployment.settings.keys() - {"api_key"}):
        raise DeployError(
            f"settings.{found[0]} is a secret: put it into a Secret of the cluster and name that in "
            "helm.values (values.yaml of the chart has where)"
        )
    variables = deployment.variables()
    variables.pop(f"{PREFIX}API_KEY", None)
    return variables


@dataclass(frozen=True, slots=True)
class Revision:
    """What Helm has of the release; `status` is Helm's word."""

    number: int
    status: str


@dataclass
class Released:
    deployment: Deployment
    values: Path
    before: Revision | None = None
    done: bool = False

    @property
    def line(self) -> list[str]:
        chosen = self.deployment.helm
        wait = ["--atomic", "--wait", "--timeout", f"{self.deployment.wait_s:.0f}s"]
        where = ["--namespace", chosen.namespace, "--create-namespace"]
        return [
            *("helm", "upgrade", "--install", chosen.release, str(chosen.chart)),
            *(*where, "--values", str(self.values), *wait),
        ]

    @property
    def plan(self) -> str:
        return f"{shlex.join(self.line)}; then {shlex.join(self._of_release('test'))}"

    def _of_release(self, verb: str, *more: str) -> list[str]:
        chosen = self.deployment.helm
        return ["helm", verb, chosen.release, *more, "--namespace", chosen.namespace]

    def do(self) -> str:
        self.before = self._revision()
        # Twice: --atomic waits for its own rollback as long again. Killed in it, a release stays pending.
        called(self.line, 2 * self.deployment.wait_s + MARGIN_S)
        self.done = True
        called(self._of_release("test", *self._within), self.deployment.wait_s + MARGIN_S)
        return f"released and tested: {self.deployment.helm.release}"

    @property
    def _within(self) -> tuple[str, str]:
        return "--timeout", f"{self.deployment.wait_s:.0f}s"

    def _revision(self) -> Revision | None:
        """None: no such release. Raises DeployError where the cluster does not tell."""
        try:
            told = json.loads(called(self._of_release("status", "--output", "json"), TOOL_S))
        except DeployError as error:
            if NO_RELEASE in str(error):
                return None
            raise
        return Revision(int(told["version"]), str(told["info"]["status"]))

    def _rolled_back(self, now: Revision | None) -> bool:
        """By --atomic: the failed upgrade is one revision, the way back another."""
        if self.done or now is None or self.before is None:
            return False
        return now.status == DEPLOYED and now.number > self.before.number + 1

    def undo(self) -> None:
        """--atomic has rolled back by itself, as a rule; Helm is asked whether it has.

        Raises:
            DeployError: the release is not as it was, or Helm does not tell.
        """
        now = self._revision()
        if now == self.before or self._rolled_back(now):
            return
        if self.before is None:
            called(self._of_release("uninstall"), self.deployment.wait_s)
            return
        back = ("rollback", str(self.before.number), "--wait", *self._within)
        called(self._of_release(*back), self.deployment.wait_s + MARGIN_S)
