"""The kustomizations and the chart: rendered by kustomize and Helm, and the results checked by kubeconform.

kubeconform would download its schemas; kubernetes-1.34.json has those of the kinds that are used here.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme
import yaml

from dockyard.config.loader import load
from tests.deploy.commands import run
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.programs import Programs

SCHEMAS = Path(__file__).parent / "kubernetes-1.34.json"
Resources = list[dict[str, Any]]

RENDERINGS = {
    "base": ("kustomize", "kubernetes/base"),
    "aws": ("kustomize", "kubernetes/aws"),
    "zone": ("kustomize", "kubernetes/zone"),
    "chart": ("helm",),
    "chart with everything": (
        "helm",
        "--set=dockerConfig.credHelpers.public\\.ecr\\.aws=ecr-login",
        "--set=environment[0].secretRef.name=dockyard-secrets",
        "--set=access.secret=dockyard-access",
        "--set=access.clusterKeys=true",
        "--set=serviceAccount.annotations.eks\\.amazonaws\\.com/role-arn=arn:aws:iam::123456789012:role/dockyard",
        "--set=volume.storageClassName=gp3",
        "--set=nodeSelector.pool=cache",
        "--set=tolerations[0].operator=Exists",
        "--set=balancer.service.type=LoadBalancer",
        "--set-string=balancer.service.annotations.internal=true",
        "--set=networkPolicy.ports={5000,8443}",
        "--set=networkPolicy.egress[0].to[0].ipBlock.cidr=169.254.169.254/32",
        "--set=config.storage.endpoint=minio:9000",
        "--set=config.upstreams[0].prefix=a.test",
        "--set=config.upstreams[0].registry=http://registry.test/mirror",
        "--set=config.upstreams[0].proxy=http://user:1234@proxy.test:3128",
        "--set=config.upstreams[1].prefix=b.test",
        "--set=config.upstreams[1].registry=[fd00::5]:5443",
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


def test_the_chart_says_how_to_correct_values(ops: Path, programs: Programs) -> None:
    """Values that cannot work are refused, all at once, each with its name and with what to do."""
    options = {
        "config.server.port": "80",
        "config.server.host": "127.0.0.1",
        "config.server.tls": "true",
        "config.server.client_ca": "/ca.pem",
        "config.access.htpasswd": "/etc/htpasswd",
        "config.access.challenge": "bearer",
        "config.storage.directory": "/data",
        "config.server.drain_timeout": "50s",
        "volume.size": "80Gi",
        "autoscaling.minReplicas": "9",
    }
    words = [f"--set={name}={value}" for name, value in options.items()]
    output = run(programs.need("helm"), "template", "x", ops / "helm" / "dockyard", *words, fails=True)
    assert "10 values cannot work:" in output
    for mistake in (
        "config.server.port: pods listen on port 5000: remove it; the port for nodes is balancer.service.nodePort",
        "config.server.host: probes and Services need all addresses of a pod: remove it",
        "config.server.tls: probes, Services and the balancer use HTTP: remove it, and put TLS in front",
        "config.server.client_ca: pods speak HTTP, and probes have no certificate: remove it",
        "config.access.htpasswd: no Secret is mounted: put the file into a Secret, name it in access.secret",
        "config.access.challenge: with bearer, replicas need one key for access tokens",
        "config.storage.directory: the volume is mounted at /var/cache/dockyard: remove it",
        "config.storage.max_size: 80GiB does not fit into volume.size (80Gi): set it to 80 % of the volume",
        "autoscaling.minReplicas: 9 is more than maxReplicas (8)",
        "terminationGracePeriodSeconds: 60 s is not longer than preStopSeconds and config.server.drain_timeout",
    ):
        assert mistake in output, mistake


@pytest.mark.parametrize("repository", ["dockyard", "registry.test/dockyard"])
def test_the_notes_of_the_chart_say_how_to_pull(ops: Path, programs: Programs, repository: str) -> None:
    """What `helm install` prints names this release, and that the default image is in no registry."""
    words = ["--dry-run=client", "--namespace=cache", f"--set=image.repository={repository}"]
    output = run(programs.need("helm"), "install", "fleet", ops / "helm" / "dockyard", *words)
    notes = output.partition("NOTES:")[2]
    assert "kubectl --namespace cache rollout status statefulset/fleet-dockyard\n" in notes
    assert "kubectl --namespace cache port-forward service/fleet-dockyard 5000:5000\n" in notes
    assert "docker pull localhost:5000/docker.io/library/alpine:latest\n" in notes
    assert "port 30500 of any node" in notes
    assert ("ImagePullBackOff" in notes) == (repository == "dockyard")


def test_the_examples_of_the_page_render(ops: Path, programs: Programs, tmp_path: Path) -> None:
    """The values and the kustomization of ops/KUBERNETES.md: the image, the namespace and the settings arrive."""
    values, kustomization, *_ = re.findall(r"```yaml\n(.*?)```", (ops / "KUBERNETES.md").read_text(), re.DOTALL)
    (tmp_path / "values.yaml").write_text(values)
    chart = resources_of(
        run(programs.need("helm"), "template", "x", ops / "helm" / "dockyard", "--values", tmp_path / "values.yaml")
    )
    shutil.copytree(ops / "kubernetes", tmp_path / "kubernetes")
    (tmp_path / "kubernetes" / "mine").mkdir()
    (tmp_path / "kubernetes" / "mine" / "kustomization.yaml").write_text(kustomization)
    manifests = resources_of(run(programs.need("kustomize"), "build", tmp_path / "kubernetes" / "mine"))
    assert {each["metadata"]["namespace"] for each in manifests} == {"dockyard"}
    for resources in (chart, manifests):
        (container,) = one(resources, "StatefulSet")["spec"]["template"]["spec"]["containers"]
        assert container["image"] == "registry.example.com/dockyard:0.1.0"
        assert one(resources, "Service", "balancer")["spec"]["ports"][0]["nodePort"] == 30500
    config = tmp_path / "config.yaml"
    config.write_text(mounted(chart, "config")["config.yaml"])
    settings = load(config, {"GHCR_TOKEN": "canary"})
    assert [upstream.prefix for upstream in settings.upstreams] == ["docker.io", "ghcr.io/my-org"]


@pytest.mark.parametrize("rendering", ["base", "aws", "zone", "chart", "chart with everything"])
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
    config.write_text(text)
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


def test_the_files_for_access_are_in_the_pods(ops: Path, programs: Programs, schemas: str, tmp_path: Path) -> None:
    """With the values of ops/KUBERNETES.md, and the same with the component of kustomize."""
    page = (ops / "KUBERNETES.md").read_text()
    (values,) = [each for each in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "clusterKeys" in each]
    (tmp_path / "values.yaml").write_text(values)
    chart = run(programs.need("helm"), "template", "x", ops / "helm" / "dockyard", "--values", tmp_path / "values.yaml")
    shutil.copytree(ops / "kubernetes", tmp_path / "kubernetes")
    (tmp_path / "kubernetes" / "mine").mkdir()
    (tmp_path / "kubernetes" / "mine" / "kustomization.yaml").write_text(
        "resources: [../base]\ncomponents: [../access]\n"
    )
    manifests = run(programs.need("kustomize"), "build", tmp_path / "kubernetes" / "mine")
    found = []
    for text in (chart, manifests):
        (tmp_path / "resources.yaml").write_text(text)
        run(
            programs.need("kubeconform"),
            "-strict",
            "-summary",
            "-schema-location",
            schemas,
            tmp_path / "resources.yaml",
        )
        pod = one(resources_of(text), "StatefulSet")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        volumes = {each["name"]: each for each in pod["volumes"]}
        ports = {
            port["port"]
            for rule in one(resources_of(text), "NetworkPolicy")["spec"]["egress"]
            for port in rule["ports"]
        }
        secret = volumes["access"]["secret"]["secretName"]
        found.append((mounts["access"], mounts["cluster"], secret, volumes["cluster"]["projected"], 6443 in ports))
    assert found[0] == found[1]
    assert found[0][:3] == ("/etc/dockyard-access", "/run/secrets/cluster", "dockyard-access")
    assert found[0][-1]
    settings = yaml.safe_load(mounted(resources_of(chart), "config")["config.yaml"])
    assert settings["access"]["htpasswd"].startswith("/etc/dockyard-access/")


Rule = dict[str, Any]


def egress(resources: Resources) -> list[Rule]:
    """The egress rules of the NetworkPolicy."""
    rules: list[Rule] = one(resources, "NetworkPolicy")["spec"]["egress"]
    return rules


def allows(rules: list[Rule], address: str, port: int, protocol: str = "TCP") -> bool:
    """Whether the rules allow packets to an address that belongs to no pod."""
    return any(
        _has_port(rule, port, protocol) and any(_contains(peer, address) for peer in rule.get("to", [{}]))
        for rule in rules
    )


def allows_pods(rules: list[Rule], port: int, protocol: str = "TCP") -> bool:
    """Whether the rules allow packets to the pods of all namespaces, by more than their addresses."""
    everywhere: list[Rule] = [{}, {"namespaceSelector": {}}]
    return any(
        _has_port(rule, port, protocol) and any(peer in everywhere for peer in rule.get("to", [{}])) for rule in rules
    )


def _has_port(rule: Rule, port: int, protocol: str) -> bool:
    return "ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"]


def _contains(peer: Rule, address: str) -> bool:
    if not peer:
        return True
    if "ipBlock" not in peer:
        return False
    parsed = ip_address(address)
    block = peer["ipBlock"]
    networks = [ip_network(cidr) for cidr in (block["cidr"], *block.get("except", []))]
    return [parsed in network for network in networks] == [True] + [False] * (len(networks) - 1)


@pytest.mark.parametrize("rendering", ["base", "aws", "chart", "chart with everything"])
def test_pods_reach_what_they_need(render: Callable[[str], str], rendering: str) -> None:
    """Names, registries, AWS and the agent of Pod Identity, by IPv4 and IPv6; not the metadata service of a machine."""
    rules = egress(resources_of(render(rendering)))
    for protocol in ("UDP", "TCP"):
        for name_server in ("169.254.20.10", "10.96.0.10", "1.1.1.1", "fd00::a", "fe80::53", "2606:4700::1"):
            assert allows(rules, name_server, 53, protocol), name_server
        assert allows_pods(rules, 53, protocol)
        assert allows_pods(rules, 5353, protocol)
    for registry in ("52.1.2.3", "10.0.0.7", "2600:1f18::1", "fd00:1::1"):
        assert allows(rules, registry, 443), registry
    assert allows_pods(rules, 443)
    for agent in ("169.254.170.23", "fd00:ec2::23"):
        assert allows(rules, agent, 80)
    for agent in ("169.254.170.2", "169.254.169.253", "fd00:ec2::254"):
        assert not allows(rules, agent, 80)
        assert not allows(rules, agent, 443)
    assert not allows(rules, "52.1.2.3", 22)
    assert allows(rules, "169.254.169.254", 80) == (rendering == "chart with everything")


def test_the_dockyards_of_a_zone_ask_those_of_all_zones(render: Callable[[str], str], tmp_path: Path) -> None:
    """They are in the zone only, have an address of their own, and reach the balancer that their upstreams name."""
    inner, outer = resources_of(render("zone")), resources_of(render("aws"))
    namespaces = {each["metadata"]["namespace"] for each in inner}
    assert namespaces == {"dockyard-zone-a"}
    for kind, ending in (("StatefulSet", "dockyard"), ("Deployment", "balancer")):
        pod = one(inner, kind, ending)["spec"]["template"]["spec"]
        assert pod["nodeSelector"] == {"topology.kubernetes.io/zone": "zone-a"}
    ports = [one(each, "Service", "balancer")["spec"]["ports"][0] for each in (inner, outer)]
    assert ports[0]["nodePort"] != ports[1]["nodePort"]
    config = tmp_path / "config.yaml"
    config.write_text(mounted(inner, "config")["config.yaml"])
    settings = load(config, {})
    assert settings.warnings == ()
    for upstream in settings.upstreams:
        service, namespace, *rest = upstream.origin.host.split(".")
        assert service == one(outer, "Service", "balancer")["metadata"]["name"]
        assert (namespace, rest) == ("dockyard", ["svc", "cluster", "local"])
        assert upstream.origin.port == ports[1]["port"]
        assert upstream.path == upstream.prefix
    assert allows_pods(egress(inner), 5000)


def test_the_chart_allows_the_ports_of_its_settings(render: Callable[[str], str]) -> None:
    """The S3 endpoint (also in the cluster), registries and proxies with ports, and the ports of the values."""
    rules = egress(resources_of(render("chart with everything")))
    for port in (80, 443, 3128, 5000, 5443, 8443, 9000):
        assert allows(rules, "52.1.2.3", port), port
        assert allows(rules, "2600:1f18::1", port), port
        assert allows_pods(rules, port), port
    assert not allows(rules, "52.1.2.3", 1234), "a password in the URL of a proxy is no port"
    rules = egress(resources_of(render("chart")))
    assert not any(allows(rules, "52.1.2.3", port) for port in (80, 5000, 9000))


@pytest.mark.parametrize(
    ("endpoint", "use_ssl", "port"),
    [
        ("minio:9000", "false", 9000),
        ("minio:9000", "true", 9000),
        ("minio", "false", 80),
        ("minio", "true", 443),
        ("[fd00::5]", "false", 80),
        ("[fd00::5]:9001", "false", 9001),
    ],
)
def test_the_port_of_an_endpoint_is_allowed(
    ops: Path, programs: Programs, endpoint: str, use_ssl: str, port: int
) -> None:
    """As Dockyard understands it: without a port it is 80, or 443 with `use_ssl`."""
    options = [f"--set=config.storage.endpoint={endpoint}", f"--set=config.storage.use_ssl={use_ssl}"]
    text = run(programs.need("helm"), "template", "fleet", ops / "helm" / "dockyard", *options)
    rules = egress(resources_of(text))
    ports = [each["port"] for each in rules[1]["ports"]]
    assert ports == sorted({443, port}, key=lambda each: each != 443)


def test_the_documented_patch_adds_a_port(ops: Path, programs: Programs, tmp_path: Path) -> None:
    """The example in the comment of the base works."""
    comment = (ops / "kubernetes" / "base" / "kustomization.yaml").read_text()
    example = comment[comment.index("#     patches:") : comment.index("apiVersion:")]
    shutil.copytree(ops / "kubernetes", tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes" / "overlay"
    overlay.mkdir()
    patches = "\n".join(line.removeprefix("#     ") for line in example.splitlines() if line.startswith("#     "))
    (overlay / "kustomization.yaml").write_text(f"resources: [../base]\n{patches}\n")
    rules = egress(resources_of(run(programs.need("kustomize"), "build", overlay)))
    assert allows(rules, "10.0.0.7", 9000)
    assert allows_pods(rules, 9000)


CREDENTIAL_PROVIDER = Path("kubernetes", "credential-provider")
REGISTRY = "dockyard.example:5000"


@pytest.mark.parametrize("file", ["audience.yaml", "pull-secrets.yaml"])
def test_kubeconform_accepts_the_resources_for_logins(ops: Path, programs: Programs, schemas: str, file: str) -> None:
    """The examples beside the credential provider are valid resources."""
    options = ["-strict", "-summary", "-output=json", f"-schema-location={schemas}"]
    output = json.loads(run(programs.need("kubeconform"), *options, ops / CREDENTIAL_PROVIDER / file))
    assert output["summary"]["valid"] == 2
    assert output["summary"]["invalid"] + output["summary"]["errors"] + output["summary"]["skipped"] == 0


def test_pull_secrets_have_the_logins_of_the_page(ops: Path) -> None:
    """The page shows the content of the secret; the longest path is that of the first image."""
    secret, pod = yaml.safe_load_all((ops / CREDENTIAL_PROVIDER / "pull-secrets.yaml").read_text())
    config = json.loads(secret["stringData"][".dockerconfigjson"])
    (shown,) = re.findall(r"```json\n(.*?)```", (ops / "KUBERNETES.md").read_text(), re.DOTALL)
    assert config == json.loads(shown)
    assert pod["spec"]["imagePullSecrets"] == [{"name": secret["metadata"]["name"]}]
    keys = [
        max((key for key in config["auths"] if f"{container['image']}/".startswith(f"{key}/")), key=len)
        for container in pod["spec"]["containers"]
    ]
    assert keys == [f"{REGISTRY}/ghcr.io/my-org", REGISTRY]


@pytest.fixture
def provide(ops: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs the credential provider as the kubelet does: by its name in the configuration."""
    config = yaml.safe_load((ops / CREDENTIAL_PROVIDER / "config.yaml").read_text())
    (provider,) = config["providers"]

    def execute(**fields: object) -> subprocess.CompletedProcess[str]:
        request = {"kind": "CredentialProviderRequest", "apiVersion": provider["apiVersion"], **fields}
        return subprocess.run(
            [ops / CREDENTIAL_PROVIDER / provider["name"]],
            input=json.dumps(request) + "\n",
            capture_output=True,
            text=True,
            timeout=EVENT_TIMEOUT_S,
            check=False,
            env={"PATH": "/usr/bin:/bin"},
        )

    return execute


def test_the_credential_provider_is_configured_for_tokens(ops: Path) -> None:
    """The audience is the one that audience.yaml allows to kubelets and that Dockyard expects."""
    config = yaml.safe_load((ops / CREDENTIAL_PROVIDER / "config.yaml").read_text())
    assert (config["apiVersion"], config["kind"]) == ("kubelet.config.k8s.io/v1", "CredentialProviderConfig")
    (provider,) = config["providers"]
    assert provider.keys() == {"name", "apiVersion", "matchImages", "defaultCacheDuration", "tokenAttributes"}
    assert provider["matchImages"] == [REGISTRY]
    audience = provider["tokenAttributes"].pop("serviceAccountTokenAudience")
    assert provider["tokenAttributes"] == {"cacheType": "Token", "requireServiceAccount": True}
    role, binding = yaml.safe_load_all((ops / CREDENTIAL_PROVIDER / "audience.yaml").read_text())
    assert role["rules"] == [
        {"apiGroups": [""], "resources": [audience], "verbs": ["request-serviceaccounts-token-audience"]}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == "system:nodes"
    (page,) = re.findall(r"```yaml\n(access:.*?)```", (ops / "KUBERNETES.md").read_text(), re.DOTALL)
    assert yaml.safe_load(page)["access"]["jwt"][0]["audience"] == audience


def test_the_credential_provider_sends_the_token_as_password(
    provide: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Its response is what the kubelet accepts, for the registry of the image, whatever the annotations are."""
    token = jwt.encode({"sub": "system:serviceaccount:team-a:default"}, "a key for tests that is long enough", "HS256")
    annotations = {"image": "other.example/app", "note": f'"serviceAccountToken":"{token[:20]}.x.y"'}
    done = provide(
        image=f"{REGISTRY}/ghcr.io/my-org/app", serviceAccountToken=token, serviceAccountAnnotations=annotations
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "kind": "CredentialProviderResponse",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "cacheKeyType": "Registry",
        "auth": {REGISTRY: {"username": "serviceaccount", "password": token}},
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": f"{REGISTRY}/app"}, "the request has no serviceAccountToken: set tokenAttributes"),
        ({"image": f"{REGISTRY}/app", "serviceAccountToken": ""}, "the request has no serviceAccountToken"),
        ({"image": f"{REGISTRY}/app", "serviceAccountToken": 'a".b.c'}, "the request has no serviceAccountToken"),
        ({"serviceAccountToken": "a.b.c"}, "the request has no image"),
    ],
)
def test_the_credential_provider_fails_without_a_token(
    provide: Callable[..., subprocess.CompletedProcess[str]], fields: dict[str, object], message: str
) -> None:
    """The kubelet then logs the reason, and no login is sent."""
    done = provide(**fields)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


@pytest.mark.parametrize("page", ["KUBERNETES.md", "CLIENTS.md"])
def test_the_settings_for_tokens_are_valid(ops: Path, tmp_path: Path, page: str) -> None:
    """Dockyard accepts the settings that the page shows, once the files are there."""
    (text,) = re.findall(r"```yaml\n(access:.*?)```", (ops / page).read_text(), re.DOTALL)
    for number, path in enumerate(re.findall(r"/run/secrets/\S+", text)):
        file = tmp_path / f"file-{number}"
        with file.open("wb") as target:
            target.write(trustme.CA().cert_pem.bytes())
        text = text.replace(path, str(file))
    config = tmp_path / "config.yaml"
    config.write_text(text)
    settings = load(config, {})
    assert {issuer.audience for issuer in settings.access.jwt} == {"dockyard"}
    assert settings.access.rules


def test_ci_jobs_log_in_with_their_tokens(ops: Path, tmp_path: Path) -> None:
    """The scripts of the jobs, with stand-ins for curl and docker: the token is the password, and never an argument."""
    github = yaml.safe_load((ops / "ci" / "github-actions.yaml").read_text())["jobs"]["test"]
    gitlab = yaml.safe_load((ops / "ci" / "gitlab-ci.yaml").read_text())["test"]
    assert github["permissions"]["id-token"] == "write"
    assert gitlab["id_tokens"] == {"DOCKYARD_TOKEN": {"aud": "dockyard"}}
    programs = {
        "curl": 'echo "curl $*" >> "$CALLS"; echo \'{"value": "a.b.c"}\'',
        "jq": 'sed -n \'s/.*"value": "\\(.*\\)".*/\\1/p\'',
        "docker": 'echo "docker $*" >> "$CALLS"; [ "$1" != login ] || echo "stdin $(cat)" >> "$CALLS"',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environ = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "CALLS": str(tmp_path / "calls"),
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "request-token",
        "ACTIONS_ID_TOKEN_REQUEST_URL": "https://token.test/?api-version=2.0",
        "DOCKYARD_TOKEN": "a.b.c",
    }
    scripts = {
        "github": "\n".join(step["run"] for step in github["steps"]),
        "gitlab": "\n".join(gitlab["script"]),
    }
    for user, script in scripts.items():
        (tmp_path / "calls").unlink(missing_ok=True)
        subprocess.run(["/bin/sh", "-e", "-c", script], env=environ, timeout=EVENT_TIMEOUT_S, check=True)
        calls = (tmp_path / "calls").read_text().splitlines()
        if user == "github":
            assert calls.pop(0).endswith("https://token.test/?api-version=2.0&audience=dockyard")
        assert calls == [
            f"docker login {REGISTRY} --username {user} --password-stdin",
            "stdin a.b.c",
            f"docker pull {REGISTRY}/ghcr.io/my-org/app:v1",
        ]
