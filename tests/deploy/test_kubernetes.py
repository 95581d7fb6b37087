"""The Kubernetes manifests: against the API's own schemas (package kubernetes-validate) and against this repository."""

import json
import re
import shlex
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import redis
import yaml
from compose_tool import ROOT, tool

from common import acl, keys
from common.queue import Queue, connect
from common.types import RolloutGroup
from deploy import secrets

VARIANTS = ("base", "overlays/8-gpus", "overlays/64-gpus")
CLUSTER = "1.37"
GPUS = {"base": 2, "overlays/8-gpus": 8, "overlays/64-gpus": 64}

NAME = {"type": "string", "pattern": "^[a-z0-9.-]+$"}
REF = {k: {"type": "string"} for k in ("parameter", "name", "key")}
TARGET_REF = {
    "type": "array",
    "items": {"type": "object", "additionalProperties": False, "required": list(REF), "properties": REF},
}
# The parts of KEDA's resource definitions that are used here, written down from its documentation (keda.sh, ScaledObject
# specification, redis-streams scaler and TriggerAuthentication, version 2.x).
KEDA = {
    "ScaledObject": {
        "type": "object", "additionalProperties": False, "required": ["scaleTargetRef", "triggers"],
        "properties": {
            "scaleTargetRef": {"type": "object", "additionalProperties": False, "required": ["name"],
                               "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "name": NAME}},
            "minReplicaCount": {"type": "integer", "minimum": 0}, "maxReplicaCount": {"type": "integer", "minimum": 1},
            "pollingInterval": {"type": "integer", "minimum": 1}, "cooldownPeriod": {"type": "integer", "minimum": 0},
            "fallback": {"type": "object", "additionalProperties": False, "required": ["failureThreshold", "replicas"],
                         "properties": {"failureThreshold": {"type": "integer"}, "replicas": {"type": "integer"}}},
            "advanced": {"type": "object", "additionalProperties": False,
                         "properties": {"horizontalPodAutoscalerConfig": {"type": "object"}}},
            "triggers": {"type": "array", "minItems": 1, "items": {
                "type": "object", "additionalProperties": False, "required": ["type", "metadata"],
                "properties": {
                    "type": {"const": "redis-streams"},
                    "authenticationRef": {"type": "object", "required": ["name"], "properties": {"name": NAME}},
                    "metadata": {"type": "object", "additionalProperties": False, "required": ["address", "stream"],
                                 "properties": {key: {"type": "string"} for key in (
                                     "address", "stream", "streamLength", "databaseIndex", "enableTLS")}}}}},
        },
    },
    "TriggerAuthentication": {
        "type": "object", "additionalProperties": False,
        "properties": {"secretTargetRef": TARGET_REF, "configMapTargetRef": TARGET_REF},
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=VARIANTS)
def built(request):
    """(variant, its resources) as `kubectl kustomize` builds them."""
    done = subprocess.run([tool("kubectl"), "kustomize", f"deploy/kubernetes/{request.param}"], cwd=ROOT, text=True,
                          capture_output=True, check=True)  # fmt: skip
    return request.param, [r for r in yaml.safe_load_all(done.stdout) if r]


def of_kind(resources, kind):
    return {r["metadata"]["name"]: r for r in resources if r["kind"] == kind}


def workloads(resources):
    return {r["metadata"]["name"]: r for r in resources if r["kind"] in ("Deployment", "StatefulSet", "Job")}


def pod(workload):
    return workload["spec"]["template"]["spec"]


def containers(workload):
    return [*pod(workload).get("initContainers", []), *pod(workload)["containers"]]


def test_every_resource_fits_its_schema(built):
    checked = 0
    for resource in built[1]:
        if resource["kind"] in KEDA:
            jsonschema.validate(resource["spec"], KEDA[resource["kind"]])
        else:
            kubernetes_validate.validate(resource, CLUSTER, strict=True)
        checked += 1
    assert checked == 20


@pytest.mark.parametrize(
    ("kind", "break_it"),
    [
        ("Deployment", lambda r: pod(r)["containers"][0].update(imagePullPolice="Always")),
        ("Job", lambda r: r["spec"].update(completions="two")),
        ("NetworkPolicy", lambda r: r["spec"].update(policyTypes="Egress")),
        ("ScaledObject", lambda r: r["spec"]["triggers"][0]["metadata"].update(lagcount="5")),
    ],
)
def test_a_broken_resource_is_refused(built, kind, break_it):
    resource = json.loads(json.dumps(next(r for r in built[1] if r["kind"] == kind)))
    break_it(resource)
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError)):
        if kind in KEDA:
            jsonschema.validate(resource["spec"], KEDA[kind])
        else:
            kubernetes_validate.validate(resource, CLUSTER, strict=True)


def test_what_is_named_exists(built, tmp_path):
    """Claims, config maps, the keys of the one secret, services, scale targets."""
    _, resources = built
    secrets.ensure(tmp_path)
    made = {p.name for p in tmp_path.iterdir()}
    maps = of_kind(resources, "ConfigMap")
    for name, workload in workloads(resources).items():
        volumes = {v["name"]: v for v in pod(workload).get("volumes", [])}
        volumes |= {c["metadata"]["name"]: c for c in workload["spec"].get("volumeClaimTemplates", [])}
        for volume in volumes.values():
            if "secret" in volume:
                assert volume["secret"]["secretName"] == "rankspace"
                assert {item["key"] for item in volume["secret"]["items"]} <= made, name
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps, name
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in of_kind(resources, "PersistentVolumeClaim")
        for container in containers(workload):
            assert {m["name"] for m in container.get("volumeMounts", [])} <= set(volumes), name
            for source in container.get("envFrom", []):
                assert source["configMapRef"]["name"] in maps
            env = {e["name"]: e.get("value", "") for e in container.get("env", [])}
            known = set(env) | {
                k for s in container.get("envFrom", []) for k in maps[s["configMapRef"]["name"]]["data"]
            }
            used = set(re.findall(r"\$[({]?([A-Z_]+)", json.dumps(container["command"]).replace("$(cat", "")))
            assert used <= known | {"JOB_COMPLETION_INDEX"}, f"{name}: {used - known}"
            if "REDIS_USERNAME" in env:
                assert env["REDIS_USERNAME"] in acl.USERS
                assert env["REDIS_PASSWORD_FILE"] == f"/run/secrets/redis_{env['REDIS_USERNAME']}"
                assert env["REDIS_URL"] == "redis://redis:6379/0" and "redis" in of_kind(resources, "Service")
        if workload["kind"] == "StatefulSet":
            assert workload["spec"]["serviceName"] in of_kind(resources, "Service")
    scaled = of_kind(resources, "ScaledObject")["sandbox"]["spec"]
    assert scaled["scaleTargetRef"]["name"] in of_kind(resources, "Deployment")
    (trigger,) = scaled["triggers"]
    authentication = of_kind(resources, "TriggerAuthentication")[trigger["authenticationRef"]["name"]]["spec"]
    assert authentication["secretTargetRef"][0]["key"] in made
    assert maps[authentication["configMapTargetRef"][0]["name"]]["data"]["monitor"] in acl.USERS
    assert trigger["metadata"]["stream"] == keys.ROLLOUTS
    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]


def test_services_find_their_pods(built):
    for name, service in of_kind(built[1], "Service").items():
        workload = workloads(built[1])[name]
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        open_ports = {p["containerPort"] for c in containers(workload) for p in c.get("ports", [])}
        assert {p["port"] for p in service["spec"]["ports"]} <= open_ports, name
        text = json.dumps(containers(workload))
        for port in open_ports - {6379, 29400}:
            assert f"port={port}" in text, f"{name} does not listen on {port}"


def test_commands_are_those_of_this_repository(built):
    code = (
        "import sys, importlib, json\n"
        "for module, argv in json.load(sys.stdin):\n"
        "    importlib.import_module(module).parser().parse_args(argv)\n"
    )
    modules = {
        "experiments": ("experiments.launch.prepare", 2),
        "services.ref_server": ("services.ref_server.__main__", 1),
        "services.sandbox": ("services.sandbox.worker", 2),
        "services.trainer": ("services.trainer.__main__", 1),
    }
    asked = []
    for workload in workloads(built[1]).values():
        for container in containers(workload):
            command = container["command"]
            if command[0] == "sh" and "exec python" in command[2]:
                command = shlex.split(command[2].partition("exec ")[2].partition(";")[0])
            if "-m" in command:
                after = command[command.index("-m") + 1 :]
                module, skip = modules[after[0]]
                asked.append([module, [re.sub(r"\$\(?\w+\)?", "1", part) for part in after[skip:]]])
    assert len(asked) == 4
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(asked), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-1000:]


def test_pods_are_as_restricted_as_the_namespace_demands(built):
    """Kubernetes' Pod Security Standard `restricted`, and a read-only root on top."""
    for name, workload in workloads(built[1]).items():
        spec = pod(workload)
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any("hostPath" in v for v in spec.get("volumes", []))
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for container in containers(workload):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            for side in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][side]), name


def test_the_network_lets_through_what_is_needed_and_no_more(built):
    policies = of_kind(built[1], "NetworkPolicy")
    everybody = policies["refuse-all"]["spec"]
    assert everybody["podSelector"] == {} and set(everybody["policyTypes"]) == {"Ingress", "Egress"}
    assert "egress" not in everybody and "ingress" not in everybody
    labels = {name: w["spec"]["template"]["metadata"]["labels"] for name, w in workloads(built[1]).items()}
    reach = {name for name, own in labels.items() if own.get("talks-to-redis") == "true"}
    assert reach == {"ref-server", "sandbox", "trainer"}
    for policy in policies.values():
        for rule in policy["spec"].get("egress", []):
            for peer in rule["to"]:
                assert "ipBlock" not in peer, "nothing leaves the cluster"
    to_redis = policies["services-to-redis"]["spec"]["egress"][0]
    assert to_redis["to"] == [{"podSelector": {"matchLabels": {"app": "redis"}}}]
    assert policies["redis"]["spec"]["ingress"][0]["ports"] == [{"port": 6379, "protocol": "TCP"}]
    assert policies["trainer-ranks"]["spec"]["podSelector"]["matchLabels"] == {"app": "trainer"}


def test_cards_add_up(built):
    variant, resources = built
    found = workloads(resources)
    env = {e["name"]: e.get("value") for e in pod(found["trainer"])["containers"][0]["env"]}
    spec = found["trainer"]["spec"]
    cards = int(pod(found["trainer"])["containers"][0]["resources"]["requests"]["nvidia.com/gpu"])
    assert spec["completions"] == spec["parallelism"] == int(env["NODES"]) and spec["completionMode"] == "Indexed"
    assert cards == int(env["RANKS_A_NODE"])
    replicas = found["ref-server"]["spec"]["replicas"]
    server = pod(found["ref-server"])["containers"][0]
    tensor_parallel = int({e["name"]: e.get("value") for e in server["env"]}["TENSOR_PARALLEL"])
    assert int(server["resources"]["requests"]["nvidia.com/gpu"]) == tensor_parallel
    assert spec["completions"] * cards + replicas * tensor_parallel == GPUS[variant]
    assert pod(found["trainer"])["subdomain"] == "trainer"
    assert "trainer-0.trainer" in pod(found["trainer"])["containers"][0]["command"]


def test_the_redis_configuration_is_the_one_of_compose():
    assert (ROOT / "deploy/kubernetes/base/redis.conf").read_text() == (ROOT / "deploy/redis/redis.conf").read_text()


def test_why_the_graders_scale_by_length_and_not_by_lag(redis_url):
    """With entries deleted out of order Redis has no lag to tell; the length stays the backlog."""
    from samples import group

    queue = Queue(connect(redis_url), "grader")
    for i in range(6):
        queue.publish(keys.ROLLOUTS, group(f"g{i}"))
    taken = queue.consume(keys.ROLLOUTS, keys.GRADERS, (RolloutGroup,), count=4)
    queue.ack(keys.GRADERS, taken[3])
    plain = redis.Redis.from_url(redis_url)
    assert plain.xlen(keys.ROLLOUTS) == 5
    version = tuple(map(int, plain.info("server")["redis_version"].split(".")[:2]))
    (state,) = plain.xinfo_groups(keys.ROLLOUTS)
    if (7, 0) <= version < (7, 4):
        assert state["lag"] is None
    queue.ack(keys.GRADERS, *taken[:3])
    assert plain.xlen(keys.ROLLOUTS) == 2


def test_deepspeed_reads_the_hostfile():
    from deepspeed.launcher.runner import fetch_hostfile

    assert dict(fetch_hostfile(str(ROOT / "deploy/deepspeed/hostfile"))) == {"node-0": 8, "node-1": 8}
