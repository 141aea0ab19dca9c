"""The Helm chart: each value set of `ci/` is good Kubernetes, and what cannot work is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_config.profile import FolderModel, load
from gateway.settings import Settings
from tests.deploy.tools import (
    CHART,
    ROOT,
    VALUE_SETS,
    Resource,
    check_custom,
    is_custom,
    one,
    rendered,
    run,
    template,
    told,
)

PLAIN = CHART / "ci/plain.yaml"
KUBERNETES = ("1.27", "1.32", "1.37")
EACH = pytest.mark.parametrize("values", VALUE_SETS, ids=lambda path: path.stem)


def pod_specs(resources: list[Resource]) -> list[Resource]:
    specs = []
    for resource in resources:
        if resource["kind"] == "Pod":
            specs.append(resource["spec"])
        elif resource["kind"] in ("Deployment", "Job"):
            specs.append(resource["spec"]["template"]["spec"])
    return specs


def config(resources: list[Resource]) -> dict[str, str]:
    data: dict[str, str] = {}
    for resource in resources:
        if resource["kind"] == "ConfigMap":
            data |= resource["data"]
    return {name: value for name, value in data.items() if name.startswith("GATEWAY_")}


def test_there_are_six_value_sets() -> None:
    assert len(VALUE_SETS) >= 6


@EACH
def test_helm_lint_is_strict_and_has_nothing_to_say(values: Path) -> None:
    done = run("helm", "lint", "--strict", CHART, "--values", values)
    assert done.returncode == 0, told(done)


@EACH
@pytest.mark.parametrize("version", KUBERNETES)
def test_what_is_rendered_fits_the_schemas_of_kubernetes(
    values: Path, version: str, tmp_path: Path
) -> None:
    own = [resource for resource in rendered("--values", values) if not is_custom(resource)]
    path = tmp_path / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(own))
    done = run("kubernetes-validate", "-k", version, "--strict", path)
    assert done.returncode == 0, told(done)
    assert told(done).count(" passed ") == len(own)


@EACH
def test_custom_resources_fit_the_models_of_their_operators(values: Path) -> None:
    custom = [resource for resource in rendered("--values", values) if is_custom(resource)]
    done = check_custom(custom)
    assert done.returncode == 0, told(done)


def test_the_value_sets_make_every_custom_resource_and_the_models_see_errors() -> None:
    custom = [
        resource
        for values in VALUE_SETS
        for resource in rendered("--values", values)
        if is_custom(resource)
    ]
    assert {resource["kind"] for resource in custom} == {
        "ServiceMonitor",
        "PrometheusRule",
        "ScaledObject",
        "HTTPRoute",
    }
    planted = [{**resource, "spec": {**resource["spec"], **BROKEN}} for resource in custom]
    assert check_custom(planted).stdout.count("\n") == len(planted)


# A wrong type for a field of each kind.
BROKEN: dict[str, Any] = {"endpoints": 5, "groups": 5, "scaleTargetRef": 5, "rules": 5}


def test_the_policy_scan_has_nothing_to_say(tmp_path: Path) -> None:
    for values in VALUE_SETS:
        (tmp_path / values.name).write_text(template("--values", values).stdout)
    done = run("checkov", "--config-file", ROOT / "deploy/helm/checkov.yaml", "-d", tmp_path)
    assert done.returncode == 0, told(done)


@EACH
def test_the_grace_period_covers_the_wait_and_the_drain(values: Path) -> None:
    resources = rendered("--values", values, "--set", "drainSeconds=75,preStopSeconds=20")
    spec = one(resources, "Deployment")["spec"]["template"]["spec"]
    assert config(resources)["GATEWAY_DRAIN_TIMEOUT_S"] == "75"
    (container,) = spec["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "20"]
    assert spec["terminationGracePeriodSeconds"] > 75 + 20


@EACH
def test_the_gateway_would_take_its_settings(values: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown one would be refused at its start."""
    for name, value in config(rendered("--values", values)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GATEWAY_API_KEY", "a key of sixteen")
    assert Settings().host == "0.0.0.0"


@EACH
def test_no_pod_is_privileged_or_gets_variables_of_services(values: Path) -> None:
    """A Service named gateway would set GATEWAY_PORT=tcp://..., which the gateway refuses."""
    for spec in pod_specs(rendered("--values", values)):
        assert spec["enableServiceLinks"] is False
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["runAsUser"] > 10000


def test_a_gpu_is_asked_for_where_the_device_is_one() -> None:
    gpu = one(rendered("--values", CHART / "ci/gpu.yaml"), "Deployment")
    (container,) = gpu["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"].endswith("-gpu")


def test_the_commands_of_operators_have_an_admin_key_in_the_pod() -> None:
    """A tenant's key is refused by the admin listener."""
    deployment = one(rendered("--values", CHART / "ci/gpu.yaml"), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    keys = {each["name"]: each["valueFrom"] for each in container["env"]}

    assert keys == {
        "GATEWAY_ADMIN_KEY": {"secretKeyRef": {"name": "gateway-admin", "key": "admin-key"}}
    }
    assert "admin_key" in Settings.model_fields


PULLED = ("--set", "cache.persistent=true,prePull.enabled=true,prePull.build={smollm2-135m}")


def test_a_checkpoint_of_ones_own_is_mounted_where_its_profile_looks(tmp_path: Path) -> None:
    given = yaml.safe_load((CHART / "ci/quantised.yaml").read_text())
    for name, text in given["customProfiles"].items():
        (tmp_path / name).write_text(text)
    (model,) = [load(name, tmp_path).model for name in given["profiles"]]
    resources = rendered("--values", CHART / "ci/quantised.yaml", *PULLED)

    assert isinstance(model, FolderModel)
    for spec in pod_specs([one(resources, kind) for kind in ("Deployment", "Job")]):
        (container,) = spec["containers"]
        paths = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        volumes = {each["name"]: each for each in spec["volumes"]}
        claim = volumes[paths[str(model.folder.parent)]]["persistentVolumeClaim"]
        assert claim == {"claimName": "quantised-models", "readOnly": True}


TLS = "settings.GATEWAY_TLS_CERT=/keys/tls.crt,settings.GATEWAY_TLS_KEY=/keys/tls.key"


@pytest.mark.parametrize(("more", "scheme"), [("replicas=1", "http"), (TLS, "https")])
def test_probes_test_and_ingress_speak_what_the_gateway_speaks(more: str, scheme: str) -> None:
    resources = rendered(
        "--values", PLAIN, "--set", more, "--set", "ingress.enabled=true,ingress.host=x.example.com"
    )
    (gateway,) = one(resources, "Deployment")["spec"]["template"]["spec"]["containers"]
    probes = [gateway[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")]
    (ask,) = one(resources, "Pod")["spec"]["containers"]
    annotations = one(resources, "Ingress")["metadata"]["annotations"]
    backend = annotations.get("nginx.ingress.kubernetes.io/backend-protocol")

    assert {probe["scheme"] for probe in probes} == {scheme.upper()}
    assert ask["env"][0]["value"].startswith(f"{scheme}://")
    assert backend == ("HTTPS" if scheme == "https" else None)


MANY = "cache.accessModes={ReadWriteMany}"


@pytest.mark.parametrize(
    ("more", "strategy"),
    [
        ("replicas=1", "Recreate"),
        ("cache.existingClaim=mine", "Recreate"),
        (MANY, "RollingUpdate"),
        ("cache.persistent=false", "RollingUpdate"),
        (f"{MANY},state.persistent=true", "Recreate"),
        (f"{MANY},strategy=Recreate", "Recreate"),
    ],
)
def test_no_upgrade_waits_for_a_claim_that_the_old_pod_has(more: str, strategy: str) -> None:
    """A volume of one node cannot be attached to the node of a new Pod while the old one runs."""
    deployment = one(rendered("--values", PLAIN, "--set", more), "Deployment")

    assert deployment["spec"]["strategy"]["type"] == strategy


@pytest.mark.parametrize(
    ("more", "ports"),
    [
        ("redis.secret=,usage.secret=", {53, 443}),
        ("redis.secret=r", {53, 443, 6379}),
        ("usage.secret=u", {53, 443, 5432}),
        ("settings.GATEWAY_TRACE_ENDPOINT=http://otel.obs:4318", {53, 443, 4318}),
        ("settings.GATEWAY_TRACE_ENDPOINT=http://otel.obs", {53, 443, 80}),
        ("settings.GATEWAY_TRACE_ENDPOINT=https://otel.obs/v1", {53, 443}),
        ("redis.secret=r,networkPolicy.egress[0].ports[0].port=7000", {53, 7000}),
    ],
)
def test_the_network_policy_lets_out_what_is_set(more: str, ports: set[int]) -> None:
    policy = one(rendered("--values", PLAIN, "--set", more), "NetworkPolicy")
    out = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}

    assert out == ports | {"http"}


def test_whoever_may_call_the_charts_own_test_may() -> None:
    resources = rendered("--values", CHART / "ci/fleet-keda.yaml")
    test = one(resources, "Pod")["metadata"]["labels"]
    public, _ = one(resources, "NetworkPolicy")["spec"]["ingress"]
    given, own = public["from"]

    assert given["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ingress"}
    assert own["podSelector"]["matchLabels"].items() <= test.items()


def test_the_charts_own_test_knows_the_names_that_are_trusted() -> None:
    resources = rendered("--values", CHART / "ci/gateway-api.yaml")
    (ask,) = one(resources, "Pod")["spec"]["containers"]

    assert {"name": "GATEWAY_TRUSTED_HOSTS", "value": "gateway.example.com"} in ask["env"]


def test_of_a_replicas_kv_caches_the_fullest_counts() -> None:
    """Summed, two models that are half full would be one full replica."""
    scaled = one(rendered("--values", CHART / "ci/fleet-keda.yaml"), "ScaledObject")
    queries = {each["name"]: each["metadata"]["query"] for each in scaled["spec"]["triggers"]}

    assert queries["kv-cache"].startswith("sum(max by (pod) (vllm:kv_cache_usage_perc{")
    assert queries["queued"].startswith("sum(gateway_queued_requests{")


def test_alerts_may_go_by_a_scrape_of_ones_own() -> None:
    more = "metrics.prometheusRule.enabled=true,metrics.prometheusRule.scrapedElsewhere=true"

    assert one(rendered("--values", PLAIN, "--set", more), "PrometheusRule")


def test_the_public_service_and_the_admin_one_share_no_port() -> None:
    services = [item for item in rendered("--values", PLAIN) if item["kind"] == "Service"]
    ports = [{port["targetPort"] for port in service["spec"]["ports"]} for service in services]
    assert ports == [{"http"}, {"admin"}]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("auth.apiKey.secret=", "no key is set"),
        ("state.persistent=true,replicas=2", "one SQLite file for one Pod"),
        ("state.persistent=true,strategy=RollingUpdate", "set strategy to Recreate"),
        ("replicas=2", "ReadWriteMany"),
        ("replicas=2,cache.existingClaim=mine", "also that of cache.existingClaim"),
        ("auth.adminKey.secret=admin", "one of the keys file"),
        ("extraVolumeMounts[0].name=m,extraVolumeMounts[0].mountPath=/cache/x", "/mountPath"),
        ("strategy=RollingUpdate", "mounted by one node at a time"),
        ("strategy=RollingUpdate,cache.existingClaim=mine", "mounted by one node at a time"),
        ("autoscaling.kind=hpa,autoscaling.minReplicas=5,cache.persistent=false", "is over"),
        ("metrics.serviceMonitor.interval=9s", "does not match pattern"),
        ("metrics.serviceMonitor.interval=09s", "does not match pattern"),
        ("ingress.enabled=true", "needs ingress.host"),
        ("gatewayApi.enabled=true", "parentRefs"),
        ("prePull.enabled=true,cache.persistent=false", "set cache.persistent"),
        ("prePull.enabled=true", "needs prePull.hub or prePull.build"),
        ("prePull.enabled=true,prePull.build={m},cache.accessModes={ReadWriteOncePod}", "at once"),
        ("settings.GATEWAY_HOST=::", "a value of its own"),
        ("settings.GATEWAY_API_KEY=secret", "invalid propertyName"),
        ("settings.GATEWAY_PORT=9000", "invalid propertyName"),
        ("settings.GATEWAY_ADMIN_PORT=9001", "invalid propertyName"),
        ("settings.GATEWAY_STATE_DIR=/else", "invalid propertyName"),
        ("settings.GATEWAY_CACHE_DIR=/else", "invalid propertyName"),
        ("metrics.prometheusRule.enabled=true", "GatewayAbsent would page at once"),
        ("image.tag=latest", "/image/tag"),
        ("drainSecond=3", "'drainSecond' not allowed"),
        ("replicas=two", "want integer"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(settings: str, sentence: str) -> None:
    done = template("--values", PLAIN, "--set", settings)
    assert done.returncode != 0
    assert sentence in told(done)
