"""What `helm install` tells at its end."""

import re

import pytest

from tests.deploy.tools import CHART, run, told

PLAIN = CHART / "ci/plain.yaml"


def notes(*settings: str) -> str:
    chosen = ("--values", PLAIN, "--set", ",".join(settings))
    done = run("helm", "install", "gw", CHART, "--dry-run=client", *chosen)
    assert done.returncode == 0, told(done)
    return done.stdout.partition("NOTES:")[2]


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ("ingress.enabled=false", "http://127.0.0.1:8000"),
        ("ingress.enabled=true,ingress.host=x.example.com", "http://x.example.com"),
        (
            "ingress.enabled=true,ingress.host=x.example.com,ingress.tlsSecret=t",
            "https://x.example.com",
        ),
    ],
)
def test_the_url_is_what_callers_use(settings: str, url: str) -> None:
    assert f"URL={url}" in notes(settings).split()


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ("replicas=1", "Usage rows and the audit log are kept in the Pod and end with it."),
        (
            "usage.secret=u",
            "The audit log is kept in the Pod and ends with it; usage rows are in your database.",
        ),
        ("state.persistent=true", ""),
    ],
)
def test_what_ends_with_the_pod_is_said(settings: str, lost: str) -> None:
    said = re.findall(r"^.*kept in the Pod.*$", notes(settings), re.MULTILINE)

    assert said == ([lost] if lost else [])


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ("replicas=1", False),
        ("auth.keysSecret=k", True),
        ("auth.keysSecret=k,auth.adminKey.secret=a", False),
    ],
)
def test_commands_that_would_be_refused_are_named_with_the_remedy(
    settings: str, warned: bool
) -> None:
    said = notes(settings)

    assert "gateway operations list" in said
    assert ("auth.adminKey" in said) is warned
