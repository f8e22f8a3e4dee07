"""The kustomizations and the chart: rendered by kustomize and Helm, and the results checked by kubeconform.

kubeconform would download its schemas; kubernetes-1.34.json has those of the kinds that are used here.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dockyard.config.loader import load
from tests.deploy.commands import run
from tests.support.programs import Programs

SCHEMAS = Path(__file__).parent / "kubernetes-1.34.json"
Resources = list[dict[str, Any]]

RENDERINGS = {
    "base": ("kustomize", "kubernetes/base"),
    "aws": ("kustomize", "kubernetes/aws"),
    "chart": ("helm",),
    "chart with everything": (
        "helm",
        "--set=dockerConfig.credHelpers.public\\.ecr\\.aws=ecr-login",
        "--set=environment[0].secretRef.name=dockyard-secrets",
        "--set=serviceAccount.annotations.eks\\.amazonaws\\.com/role-arn=arn:aws:iam::123456789012:role/dockyard",
        "--set=volume.storageClassName=gp3",
        "--set=nodeSelector.pool=cache",
        "--set=tolerations[0].operator=Exists",
        "--set=balancer.service.type=LoadBalancer",
        "--set-string=balancer.service.annotations.internal=true",
    ),
    "chart with little": ("helm", "--set=balancer.enabled=false", "--set=networkPolicy.enabled=false"),
}


@pytest.fixture(scope="module")
def render(ops: Path, programs: Programs) -> Callable[[str], str]:
    """A function that renders one of the entries above."""

    def build(name: str) -> str:
        match RENDERINGS[name]:
            case ("kustomize", directory):
                return run(programs.need("kustomize"), "build", ops / directory)
            case ("helm", *options):
                helm = programs.need("helm")
                return run(helm, "template", "fleet", ops / "helm" / "dockyard", "--namespace", "dockyard", *options)
        raise AssertionError(name)

    return build


@pytest.fixture
def schemas(tmp_path: Path) -> str:
    """The location of the schemas in kubeconform's form: one file for each kind."""
    document = json.loads(SCHEMAS.read_text())
    for kind, root in document["kinds"].items():
        schema = {"$ref": f"#/definitions/{root}", "definitions": document["definitions"]}
        (tmp_path / f"{kind.lower()}.json").write_text(json.dumps(schema))
    return f"{tmp_path}/{{{{ .ResourceKind }}}}.json"


def resources_of(text: str) -> Resources:
    """The resources of a rendering."""
    return [each for each in yaml.safe_load_all(text) if each]


def mounted(resources: Resources, volume: str) -> dict[str, str]:
    """The files of the ConfigMap that the StatefulSet mounts as this volume."""
    pod = one(resources, "StatefulSet")["spec"]["template"]["spec"]
    (name,) = [each["configMap"]["name"] for each in pod["volumes"] if each["name"] == volume]
    (found,) = [each for each in resources if each["kind"] == "ConfigMap" and each["metadata"]["name"] == name]
    return dict(found["data"])


def one(resources: Resources, kind: str, ending: str = "dockyard") -> dict[str, Any]:
    """The only resource of a kind whose name ends like this, without the hash of kustomize."""
    (found,) = [
        each
        for each in resources
        if each["kind"] == kind and re.sub(r"-[a-z0-9]{10}$", "", each["metadata"]["name"]).endswith(ending)
    ]
    return found


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_kubeconform_accepts_every_resource(
    render: Callable[[str], str], programs: Programs, schemas: str, rendering: str
) -> None:
    """Kubernetes 1.34 accepts every resource: no field is unknown, missing or of another type."""
    options = ["-strict", "-summary", "-output=json", f"-schema-location={schemas}"]
    output = json.loads(run(programs.need("kubeconform"), *options, "-", text=render(rendering)))
    assert output["summary"]["valid"] >= 7
    assert output["summary"]["invalid"] + output["summary"]["errors"] + output["summary"]["skipped"] == 0


def test_kubeconform_finds_a_misspelt_field(render: Callable[[str], str], programs: Programs, schemas: str) -> None:
    """The check itself works: a misspelt field is found."""
    wrong = render("base").replace("preStop:", "prestop:")
    output = run(programs.need("kubeconform"), f"-schema-location={schemas}", "-", text=wrong, fails=True)
    assert "prestop" in output


def test_helm_lint_accepts_the_chart(ops: Path, programs: Programs) -> None:
    """`helm lint --strict` reports nothing."""
    assert "0 chart(s) failed" in run(programs.need("helm"), "lint", "--strict", ops / "helm" / "dockyard")


def test_the_chart_rejects_unknown_values(ops: Path, programs: Programs) -> None:
    """A misspelt key is an error."""
    chart = ops / "helm" / "dockyard"
    output = run(programs.need("helm"), "template", "x", chart, "--set=balancer.replica=2", fails=True)
    assert "replica" in output


@pytest.mark.parametrize("rendering", ["base", "aws", "chart", "chart with everything"])
def test_a_pod_drains_before_it_ends(render: Callable[[str], str], rendering: str, tmp_path: Path) -> None:
    """It becomes not ready, waits, and has time for that and for drain_timeout before it is killed."""
    resources = resources_of(render(rendering))
    pod = one(resources, "StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command = " ".join(container["lifecycle"]["preStop"]["exec"]["command"])
    config = tmp_path / "config.yaml"
    config.write_text(mounted(resources, "config")["config.yaml"])
    settings = load(config, {})
    slept = re.fullmatch(r".*touch (\S+)/run/draining && sleep (\d+)", command)
    assert slept is not None
    assert slept[1] == str(settings.storage.directory)
    assert int(slept[2]) + settings.server.drain_timeout < pod["terminationGracePeriodSeconds"]
    assert str(settings.storage.directory) in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    period = container["readinessProbe"]["periodSeconds"] * container["readinessProbe"]["failureThreshold"]
    assert period < int(slept[2]), "Services leave it before it stops"


@pytest.mark.parametrize("rendering", ["base", "aws", "chart"])
def test_a_pod_has_as_many_processors_as_workers(render: Callable[[str], str], rendering: str, tmp_path: Path) -> None:
    """One worker per core of the node would be too many, and a size limit equal to the volume too large."""
    resources = resources_of(render(rendering))
    stateful = one(resources, "StatefulSet")["spec"]
    config = tmp_path / "config.yaml"
    config.write_text(mounted(resources, "config")["config.yaml"])
    settings = load(config, {})
    (container,) = stateful["template"]["spec"]["containers"]
    assert settings.server.workers == int(container["resources"]["requests"]["cpu"])
    (claim,) = stateful["volumeClaimTemplates"]
    size = claim["spec"]["resources"]["requests"]["storage"]
    assert settings.storage.max_size <= 0.8 * int(size.removesuffix("Gi")) * 2**30


@pytest.mark.parametrize("rendering", [name for name in RENDERINGS if name != "chart with little"])
def test_selectors_select_something(render: Callable[[str], str], rendering: str) -> None:
    """Each Service, budget and policy selects pods of this rendering, and the autoscaler the StatefulSet."""
    resources = resources_of(render(rendering))
    makers = [each for each in resources if each["kind"] in {"StatefulSet", "Deployment"}]
    pods = [each["spec"]["template"]["metadata"]["labels"] for each in makers]
    for each in resources:
        match each["kind"]:
            case "Service":
                selector = each["spec"]["selector"]
            case "PodDisruptionBudget":
                selector = each["spec"]["selector"]["matchLabels"]
            case "NetworkPolicy":
                selector = each["spec"]["podSelector"]["matchLabels"]
            case "HorizontalPodAutoscaler":
                target = each["spec"]["scaleTargetRef"]
                assert one(resources, target["kind"])["metadata"]["name"] == target["name"]
                continue
            case _:
                continue
        assert any(selector.items() <= labels.items() for labels in pods), each["metadata"]["name"]
    assert one(resources, "StatefulSet")["spec"]["serviceName"] in {
        each["metadata"]["name"] for each in resources if each["kind"] == "Service"
    }


@pytest.mark.parametrize("rendering", ["aws", "chart"])
def test_the_balancer_has_every_replica(
    render: Callable[[str], str], programs: Programs, rendering: str, tmp_path: Path
) -> None:
    """HAProxy accepts its configuration, which has a server for each replica that the autoscaler may create."""
    resources = resources_of(render(rendering))
    text = one(resources, "ConfigMap", "balancer")["data"]["haproxy.cfg"]
    service = one(resources, "StatefulSet")["spec"]["serviceName"]
    name = one(resources, "StatefulSet")["metadata"]["name"]
    servers = re.findall(r"^ +server \S+ (\S+):5000 check$", text, re.MULTILINE)
    most = one(resources, "HorizontalPodAutoscaler")["spec"]["maxReplicas"]
    assert [".".join(server.split(".")[:2]) for server in servers] == [f"{name}-{n}.{service}" for n in range(most)]
    config = tmp_path / "haproxy.cfg"
    config.write_text(text.replace("maxconn 16384", "maxconn 1024"))
    assert "WARNING" not in run(programs.need("haproxy"), "-c", "-f", config)


def test_the_chart_has_the_balancer_of_the_kustomization(render: Callable[[str], str]) -> None:
    """Both have the same configuration, except for the names of the servers."""
    both = [
        one(resources_of(render(name)), "ConfigMap", "balancer")["data"]["haproxy.cfg"] for name in ("aws", "chart")
    ]
    plain = [[line for line in text.splitlines() if line.strip() and "    server " not in line] for text in both]
    assert [line.strip() for line in plain[0] if line[0] != "#"] == [line.strip() for line in plain[1]]


def test_the_ecr_keychain_is_mounted_at_docker_config(render: Callable[[str], str]) -> None:
    """DOCKER_CONFIG is the directory in which the keychain is mounted, and its content is a valid keychain."""
    for rendering in ("aws", "chart with everything"):
        resources = resources_of(render(rendering))
        pod = one(resources, "StatefulSet")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        environ = {each["name"]: each["value"] for each in container["env"]}
        (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == environ["DOCKER_CONFIG"]]
        keychain = json.loads(mounted(resources, mount["name"])["config.json"])
        assert set(keychain["credHelpers"].values()) == {"ecr-login"}
        account = one(resources, "ServiceAccount")
        assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].startswith("arn:aws:iam::")
        assert account["metadata"]["name"] == pod["serviceAccountName"]
