"""The chart's Job that fills the cache: where it runs, what it is told, when it is another one."""

import pytest
import yaml

from tests.deploy.tools import CHART, Resource, one, rendered, run, told

GPU = CHART / "ci/gpu.yaml"
PLACE = ("runtimeClassName", "nodeSelector", "affinity", "tolerations")
NODE = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
BESIDE = "affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution"
LONGEST_NAME = 63
LONGEST_RELEASE = 53


def job(*arguments: object) -> Resource:
    return one(rendered("--values", GPU, *arguments), "Job")


def test_the_job_that_fills_the_cache_gets_where_the_gateway_runs() -> None:
    given = ("--set", "tolerations[0].key=dedicated", "--set")
    zone = f"{NODE}[0].matchExpressions[0].key=zone"
    resources = rendered("--values", GPU, *given, zone)
    gateway, pull = (
        one(resources, kind)["spec"]["template"]["spec"] for kind in ("Deployment", "Job")
    )

    assert all(pull[name] == gateway[name] for name in PLACE)
    assert [each["key"] for each in pull["tolerations"]] == ["nvidia.com/gpu", "dedicated"]


@pytest.mark.parametrize(
    "more",
    [
        f"{NODE}[0].matchExpressions[0].key=zone",
        "settings.HF_HOME=/cache/else",
        "extraEnv[0].name=HTTPS_PROXY",
        "serviceAccount.name=other",
        "tmpSize=2Gi",
        "image.pullPolicy=Always",
    ],
)
def test_what_changes_its_pods_makes_another_job(more: str) -> None:
    """A Job cannot be changed: an upgrade that tries is refused."""
    before, after = job(), job("--set", more)

    assert before["spec"]["template"] != after["spec"]["template"]
    assert before["metadata"]["name"] != after["metadata"]["name"]


def test_it_fetches_from_where_and_whereto_the_gateway_does() -> None:
    endpoint = "settings.HF_ENDPOINT=https://hub.example.com,settings.HF_HOME=/cache/hub"
    token = "extraEnv[0].name=HF_TOKEN,extraEnv[0].value=none"
    (container,) = job("--set", endpoint, "--set", token)["spec"]["template"]["spec"]["containers"]

    assert {each["name"]: each["value"] for each in container["env"]} == {
        "HF_ENDPOINT": "https://hub.example.com",
        "HF_HOME": "/cache/hub",
        "HF_TOKEN": "none",
    }


def test_where_one_node_has_the_cache_job_and_gateway_are_on_it() -> None:
    """Each takes the other in, so that whichever comes first may be anywhere."""
    own = f"{BESIDE}[0].topologyKey=zone"
    resources = rendered("--values", GPU, "--set", own)
    for kind in ("Deployment", "Job"):
        template = one(resources, kind)["spec"]["template"]
        given, beside = template["spec"]["affinity"]["podAffinity"][BESIDE.rpartition(".")[2]]
        (either,) = beside["labelSelector"]["matchExpressions"]
        labels = template["metadata"]["labels"]

        assert (given["topologyKey"], beside["topologyKey"]) == ("zone", "kubernetes.io/hostname")
        assert beside["labelSelector"]["matchLabels"].items() <= labels.items()
        assert labels[either["key"]] in either["values"]
        assert either["values"] == ["gateway", "pull"]


def test_where_each_node_can_have_the_cache_they_are_free() -> None:
    many = job("--set", "cache.accessModes={ReadWriteMany}")

    assert "affinity" not in many["spec"]["template"]["spec"]


def test_no_name_is_too_long_for_a_label() -> None:
    """A Job's name is a label of its Pods, a Service's a part of a host's name."""
    done = run("helm", "template", "r" * LONGEST_RELEASE, CHART, "--values", GPU)
    assert done.returncode == 0, told(done)
    names = [each["metadata"]["name"] for each in yaml.safe_load_all(done.stdout) if each]

    assert max(map(len, names)) <= LONGEST_NAME
