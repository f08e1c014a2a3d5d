"""Every image, port, path, flag, variable and name in the manifests is one that the code, the images or they have."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic import ValidationError

from server.api.guard import OPEN_PATHS
from server.api.metrics import Metrics
from server.ray_serve.settings import RaySettings
from server.settings import Settings
from server.types import EngineStats
from tests.conftest import ROOT
from tests.containers.files import Dockerfile, read_dockerfile, read_pins
from tests.manifests.built import KUBERNETES, OVERLAYS, Pod, build, of_kind, pods
from trainer.arguments import parser

IMAGES = {
    "lorachat/server": ("Dockerfile.serve", "server"),
    "lorachat/server-ray": ("Dockerfile.serve", "server-ray"),
    "lorachat/client": ("Dockerfile.serve", "client"),
    "lorachat/trainer": ("Dockerfile.train", "trainer"),
}
SERVERS = {"lorachat/server", "lorachat/server-ray"}
# Ray's own, on every node of its clusters.
RAY_PORTS = {"gcs-server": 6379, "dashboard": 8265}
ALL = pytest.mark.parametrize("overlay", OVERLAYS)


def name_of(pod: Pod) -> str:
    name, tag = pod.image.split(":")
    assert tag == "local"
    return name


def image(pod: Pod) -> tuple[Dockerfile, str]:
    file, target = IMAGES[name_of(pod)]
    return read_dockerfile(file), target


@ALL
def test_every_image_is_one_that_is_built_here(overlay: str) -> None:
    found = pods(build(overlay))
    assert found
    for pod in found:
        dockerfile, target = image(pod)
        assert target in dockerfile.stages


@ALL
def test_ports_and_probes_are_the_images(overlay: str) -> None:
    for pod in pods(build(overlay)):
        dockerfile, target = image(pod)
        exposed = {int(port.text) for port in dockerfile.instructions(target, "EXPOSE")}
        own = {port for name, port in pod.ports.items() if RAY_PORTS.get(name) != port}
        assert own == exposed
        for probe in ("readinessProbe", "livenessProbe"):
            if probe in pod.container:
                asked = pod.container[probe]["httpGet"]
                assert asked["port"] in pod.ports
                # Asked without a key, so it must be one of the open ones.
                assert asked["path"] in OPEN_PATHS


@ALL
def test_every_variable_is_read_and_every_value_accepted(overlay: str) -> None:
    for pod in pods(build(overlay)):
        ours = {name: value for name, value in pod.env.items() if name.startswith("LORACHAT_")}
        if name_of(pod) in SERVERS:
            kind = RaySettings if name_of(pod) == "lorachat/server-ray" else Settings
            fields = {name.removeprefix("LORACHAT_").lower(): value for name, value in ours.items()}
            assert fields.keys() <= kind.model_fields.keys()
            kind(**{"model": "x", **{k: v for k, v in fields.items() if v is not None}})
        else:
            program = name_of(pod).removeprefix("lorachat/")
            code = "".join(path.read_text("utf-8") for path in (ROOT / program).rglob("*.py"))
            for name in ours:
                assert f'"{name}"' in code
        assert pod.env.keys() - ours.keys() <= {"HF_HOME", "HOME"}


@ALL
def test_every_mount_has_its_place_in_the_image_and_its_volume(overlay: str) -> None:
    claims = of_kind(build(overlay), "PersistentVolumeClaim")
    for pod in pods(build(overlay)):
        dockerfile, target = image(pod)
        made = " ".join(run.text for run in dockerfile.instructions(target, "RUN"))
        folders = re.search(r"install -d -o 10001 -g 10001 ([^&]+)", made)
        assert folders is not None
        # /volume is the whole claim, as the trainer's flags name it.
        known = {*folders[1].split(), "/tmp", "/dev/shm"}
        assert pod.mounts.keys() <= known | ({"/volume"} if "trainer" in pod.image else set())
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        assert {mount["name"] for mount in pod.mounts.values()} == volumes.keys()
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        if name_of(pod) != "lorachat/trainer":
            adapters = pod.mounts[dockerfile.environment(target)["LORACHAT_ADAPTERS"]]
            assert adapters["readOnly"] is True
            assert adapters["subPath"] == "adapters"


@ALL
def test_an_operators_registry_replaces_every_image(overlay: str) -> None:
    images = "".join(
        f"  - {{name: {name}, newName: registry.example/{name}, newTag: v1}}\n" for name in IMAGES
    )
    assert not re.findall(r"(?<!example/)lorachat/[a-z-]+:", yaml.dump_all(build(overlay, images)))
    assert "registry.example/lorachat/" in yaml.dump_all(build(overlay, images))


def test_the_trainer_writes_where_the_server_reads() -> None:
    documents = build("base")
    (job,) = (pod for pod in pods(documents) if pod.owner == "Job/lorachat-train")
    (server,) = (pod for pod in pods(documents) if name_of(pod) == "lorachat/server")
    options = parser().parse_args(job.container["args"])
    assert options.adapters == Path("/volume") / server.mounts["/adapters"]["subPath"]
    assert job.env["HF_HOME"] == f"/volume/{server.mounts['/models']['subPath']}"
    # Applying the base must not rent a GPU.
    assert of_kind(documents, "Job")["lorachat-train"]["spec"]["suspend"] is True
    claim = of_kind(documents, "PersistentVolumeClaim")["lorachat"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@ALL
def test_every_pod_gives_up_its_privileges(overlay: str) -> None:
    for pod in pods(build(overlay)):
        dockerfile, target = image(pod)
        context, container = pod.spec["securityContext"], pod.container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        user = f"{context['runAsUser']}:{context['runAsGroup']}"
        assert dockerfile.instructions(target, "USER")[-1].text == user
        assert context["fsGroup"] == context["runAsGroup"]
        assert container["allowPrivilegeEscalation"] is False
        assert container["capabilities"] == {"drop": ["ALL"]}
        # Unsloth and Triton compile code and load it while they train.
        writable = name_of(pod) == "lorachat/trainer"
        assert container.get("readOnlyRootFilesystem", False) is not writable
        # Ray's autoscaler asks Kubernetes for pods; nothing else here talks to it.
        if "server-ray" not in pod.image:
            assert pod.spec["automountServiceAccountToken"] is False


def test_a_train_job_gives_up_the_same_privileges() -> None:
    """The runtime's pods are Kubeflow's; what may be patched in them is."""
    (job,) = of_kind(build("base"), "Job").values()
    own = job["spec"]["template"]["spec"]
    (train,) = of_kind(build("overlays/kubeflow"), "TrainJob").values()
    (patch,) = train["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]
    (container,), (own_container,) = pod["spec"]["containers"], own["containers"]
    assert pod["spec"]["securityContext"] == own["securityContext"]
    assert container["securityContext"] == own_container["securityContext"]
    assert container["volumeMounts"] == own_container["volumeMounts"]
    # Its network policy knows it by this.
    assert (
        pod["metadata"]["labels"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    )


@ALL
def test_no_variables_of_kubernetes_own_mix_with_the_settings(overlay: str) -> None:
    """A Service of the name lorachat-x puts LORACHAT_X_PORT into every pod that does not decline."""
    for pod in pods(build(overlay)):
        if name_of(pod) != "lorachat/trainer":
            assert pod.spec["enableServiceLinks"] is False


@ALL
def test_every_secret_that_is_read_is_there(overlay: str) -> None:
    secrets = of_kind(build(overlay), "Secret")
    read = 0
    for pod in pods(build(overlay)):
        for entry in pod.container.get("env", ()):
            if "valueFrom" in entry:
                reference = entry["valueFrom"]["secretKeyRef"]
                assert reference["key"] in secrets[reference["name"]]["data"]
                read += 1
    assert read >= 2


def test_the_examples_keys_are_refused_by_the_server() -> None:
    """Whoever forgets to write keys of his own gets a server that ends, and not one that anyone can use."""
    lines = (KUBERNETES / "base" / "keys.env.example").read_text("utf-8").splitlines()
    keys = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    with pytest.raises(ValidationError, match="ASCII"):
        Settings(model="x", api_keys=keys["api-keys"])  # type: ignore[arg-type]


@ALL
def test_the_kernel_waits_longer_than_the_server_drains(overlay: str) -> None:
    for pod in pods(build(overlay)):
        if name_of(pod) == "lorachat/server":
            drain = int(pod.env["LORACHAT_DRAIN_SECONDS"] or 0)
            before = pod.container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pod.spec["terminationGracePeriodSeconds"] > before + drain + 5
        if name_of(pod) == "lorachat/server-ray":
            assert pod.spec["terminationGracePeriodSeconds"] > ray_arguments()["drain_seconds"] + 5


@ALL
def test_the_budget_lets_a_node_be_drained(overlay: str) -> None:
    """maxUnavailable is counted from the owner's replicas, and a RayCluster tells none: nothing would ever go."""
    documents = build(overlay)
    (budget,) = of_kind(documents, "PodDisruptionBudget").values()
    (pod,) = (pod for pod in pods(documents) if matches(budget["spec"]["selector"], pod))
    if pod.owner.startswith("Deployment/"):
        assert budget["spec"]["maxUnavailable"] == 1
        return
    (service,) = of_kind(documents, "RayService").values()
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert pod.owner.endswith(f"/{group['groupName']}")
    assert "maxUnavailable" not in budget["spec"]
    assert 1 <= budget["spec"]["minAvailable"] < group["minReplicas"]


def test_the_web_clients_users_are_not_all_on_one_pod() -> None:
    service = of_kind(build("base"), "Service")["lorachat-server"]
    assert service["spec"].get("sessionAffinity", "None") == "None"


@ALL
def test_what_trains_on_several_nodes_may_talk_to_itself_and_to_nothing_here(overlay: str) -> None:
    policy = of_kind(build(overlay), "NetworkPolicy")["lorachat-train"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    itself = {"podSelector": policy["podSelector"]}
    assert policy["ingress"] == [{"from": [itself]}]
    assert {"to": [itself]} in policy["egress"]


def matches(selector: dict[str, Any], pod: Pod) -> bool:
    return selector.get("matchLabels", {}).items() <= pod.labels.items()


@ALL
def test_every_selector_finds_pods_and_every_port_is_theirs(overlay: str) -> None:
    documents = build(overlay)
    found = pods(documents)
    for service in of_kind(documents, "Service").values():
        (pod,) = (p for p in found if service["spec"]["selector"].items() <= p.labels.items())
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= pod.ports.keys()
    for budget in of_kind(documents, "PodDisruptionBudget").values():
        assert any(matches(budget["spec"]["selector"], pod) for pod in found)
    for deployment in of_kind(documents, "Deployment").values():
        template = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= template.items()
    for policy in of_kind(documents, "NetworkPolicy").values():
        chosen = [pod for pod in found if matches(policy["spec"]["podSelector"], pod)]
        is_training = policy["metadata"]["name"] == "lorachat-train"
        assert chosen or (is_training and overlay == "overlays/kubeflow")
        for rule in policy["spec"].get("ingress", ()):
            known = {port for pod in chosen for port in pod.ports.values()}
            # 52365: Ray's agent on each node, which its operator asks.
            assert {port["port"] for port in rule.get("ports", ())} <= known | {52365}


@ALL
def test_the_client_asks_a_service_that_is_there_and_may_reach_it(overlay: str) -> None:
    documents = build(overlay)
    (client,) = (pod for pod in pods(documents) if name_of(pod) == "lorachat/client")
    address = urlsplit(client.env["LORACHAT_SERVER"] or "")
    services = {
        (name, port["port"])
        for name, service in of_kind(documents, "Service").items()
        for port in service["spec"]["ports"]
    }
    # KubeRay makes one for each RayService.
    services |= {(f"{name}-serve-svc", 8000) for name in of_kind(documents, "RayService")}
    assert (address.hostname, address.port) in services
    policies = of_kind(documents, "NetworkPolicy")
    (rule,) = policies["lorachat-client"]["spec"]["egress"]
    (to,) = rule["to"]
    servers = [pod for pod in pods(documents) if name_of(pod) in SERVERS]
    assert all(matches(to["podSelector"], pod) for pod in servers)
    entry = policies["lorachat-server"]["spec"]["ingress"][0]["from"][0]["podSelector"]
    assert matches(entry, client)


def test_the_server_is_scaled_on_a_metric_that_it_has() -> None:
    (scaler,) = of_kind(build("base"), "HorizontalPodAutoscaler").values()
    target = scaler["spec"]["scaleTargetRef"]
    assert target["name"] in of_kind(build("base"), target["kind"])
    (metric,) = scaler["spec"]["metrics"]
    told = Metrics(EngineStats, {}, {}, lambda: True).exposition().decode()
    # Prometheus' names may have colons, those of Kubernetes' metrics may not.
    named = {name.replace(":", "_") for name in re.findall(r"^# TYPE (\S+)", told, re.MULTILINE)}
    assert metric["pods"]["metric"]["name"] in named
    # The rule that the page gives prometheus-adapter makes this name of that metric, by namespace and pod.
    page = (ROOT / "docs" / "scaling" / "kubernetes.md").read_text("utf-8")
    block = re.search(r"```yaml\n(  rules:.*?)```", page, re.DOTALL)
    assert block is not None
    (rule,) = yaml.safe_load(block[1])["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert rule["seriesQuery"].partition("{")[0] in told
    assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}
    (pod,) = (pod for pod in pods(build("base")) if name_of(pod) == "lorachat/server")
    assert of_kind(build("base"), "Deployment")["lorachat-server"]["spec"].get("replicas") is None
    # Threads and memory are read off the limits.
    assert pod.container["resources"]["limits"].keys() == {"cpu", "memory"}


def serve_file() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text("utf-8")))


def ray_arguments() -> dict[str, Any]:
    (application,) = serve_file()["applications"]
    return dict(application["args"])


def test_the_serve_file_names_settings_and_a_function_that_exist() -> None:
    (application,) = serve_file()["applications"]
    module, _, function = application["import_path"].partition(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert application["args"].keys() <= RaySettings.model_fields.keys()
    settings = RaySettings(**application["args"])
    assert settings.threads is not None
    assert settings.is_scaled
    dockerfile, target = read_dockerfile("Dockerfile.serve"), "server-ray"
    assert serve_file()["http_options"]["port"] == int(
        dockerfile.instructions(target, "EXPOSE")[-1].text
    )
    assert str(settings.adapters) == dockerfile.environment(target)["LORACHAT_ADAPTERS"]


def test_the_ray_service_runs_the_serve_file_and_has_room_for_its_engines() -> None:
    (service,) = of_kind(build("overlays/ray"), "RayService").values()
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == serve_file()
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == read_pins("constraints-ray.txt")["ray"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    settings = RaySettings(**ray_arguments())
    assert settings.threads is not None
    engines, rest = divmod(int(container["resources"]["limits"]["cpu"]), settings.threads)
    assert rest == 0
    assert group["minReplicas"] * engines >= settings.fewest
    assert group["maxReplicas"] * engines >= settings.most


def test_what_the_overlays_replace_is_gone() -> None:
    under_ray = build("overlays/ray")
    assert "lorachat-server" not in of_kind(under_ray, "Deployment")
    assert not of_kind(under_ray, "HorizontalPodAutoscaler")
    assert not of_kind(build("overlays/kubeflow"), "Job")
