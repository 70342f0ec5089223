"""cluster.yaml, deploy/ and what docs/deploy.md says of them: each is read by the tool that it is written for, or its rules."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any, Literal

import boto3
import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from segray import __version__, cli

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PINS = dict(line.split(";")[0].split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
WORKERS = {name: node for name, node in CLUSTER["available_node_types"].items() if name != "head"}
COMMANDS = [command for key, commands in CLUSTER.items() if key.endswith("_commands") for command in commands]


def test_workers_scale_from_zero_and_the_head_runs_drivers_only():
    assert CLUSTER["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert {node["min_workers"] for node in WORKERS.values()} == {0}
    spot = {name for name, node in WORKERS.items() if node["node_config"].get("InstanceMarketOptions")}
    assert spot == {"spot-l4", "spot-a10g"}
    assert WORKERS["on-demand-l4"]["priority"] < min(WORKERS[name]["priority"] for name in spot)


def test_every_pip_install_on_a_node_is_pinned_by_constraints():
    installs = [command for command in COMMANDS if "pip install" in command]
    assert len(installs) == 2
    assert all("--constraint ~/segray/constraints.txt" in command for command in installs)
    assert {"ray", "boto3"} <= set(PINS)


def test_what_the_launcher_copies_is_there_and_enough_to_install():
    local = {remote: path for remote, path in CLUSTER["file_mounts"].items() if not path.startswith("~")}
    assert all((ROOT / path).exists() for path in local.values())
    copied = {Path(remote).name for remote in local}
    project = (ROOT / "pyproject.toml").read_text()
    assert {"README.md", "LICENSE", "segray", "pyproject.toml", "constraints.txt"} == copied
    assert 'readme = "README.md"' in project
    assert 'license-files = ["LICENSE"]' in project


def test_nothing_of_a_cluster_is_open_or_secret():
    starts = [command for command in COMMANDS if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in next(command for command in starts if "--head" in command)
    assert "IpPermissions" not in CLUSTER["provider"]["security_group"]
    text = (ROOT / "cluster.yaml").read_text() + "".join(path.read_text() for path in DEPLOY.iterdir())
    assert re.findall(r"AKIA|ASIA|PRIVATE KEY|stringData|kind: Secret|0\.0\.0\.0", text) == []
    assert CLUSTER["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.fixture
def launcher(s3, monkeypatch, tmp_path):
    """An AWS account, as docs/deploy.md prepares it, on the server of `s3`; cluster.yaml as the launcher completes it.

    Ray has no public way to check a cluster's file: these are the functions that `ray up` calls, before any SSH.
    """
    commands = pytest.importorskip("ray.autoscaler._private.aws.config", reason="Ray moved its launcher")
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray moved its launcher")
    monkeypatch.setenv("HOME", str(tmp_path))  # where the launcher puts the key that it makes
    (tmp_path / ".ssh").mkdir()
    region = CLUSTER["provider"]["region"]
    iam, ec2 = boto3.client("iam", region), boto3.client("ec2", region)
    for name in ("segray-head", "segray-worker"):
        iam.create_instance_profile(InstanceProfileName=name)
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="segray", Description="segray", VpcId=vpc)["GroupId"]
    own = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[own, ssh])
    config = util.prepare_config(json.loads(json.dumps(CLUSTER)))
    util.validate_config(config)
    return commands.bootstrap_aws(config), ec2


@pytest.mark.slow
def test_cluster_yaml_passes_rays_own_check_and_starts_nodes_of_each_type(launcher):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config, ec2 = launcher
    known = AWSNodeProvider.fillout_available_node_types_resources(config)["available_node_types"]
    for name in WORKERS:  # without a node of the kind, the autoscaler knows that it would bring a GPU
        assert (known[name]["resources"]["GPU"], known[name]["resources"]["CPU"]) == (1, 8)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node in config["available_node_types"].items():
        provider.create_node(node["node_config"], {"ray-user-node-type": name}, 1)
    started = [one for answer in ec2.describe_instances()["Reservations"] for one in answer["Instances"]]
    kinds = {one["InstanceType"]: one for one in started}
    assert sorted(one["InstanceType"] for one in started) == ["g5.2xlarge", "g6.2xlarge", "g6.2xlarge", "m7i.xlarge"]
    assert [one.get("InstanceLifecycle") for one in started].count("spot") == 2
    assert kinds["m7i.xlarge"]["IamInstanceProfile"]["Arn"].endswith("/segray-head")
    assert kinds["g5.2xlarge"]["IamInstanceProfile"]["Arn"].endswith("/segray-worker")
    assert all({"Key": "project", "Value": "segray"} in one["Tags"] for one in started)
    groups = {group["GroupName"] for one in started for group in one["SecurityGroups"]}
    assert groups == {"segray"}
    rules = ec2.describe_security_groups(GroupNames=["segray"])["SecurityGroups"][0]["IpPermissions"]
    assert [r["CidrIp"] for rule in rules for r in rule["IpRanges"]] == ["203.0.113.7/32"]  # no SSH from anywhere


class Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Auth(Fields):
    mode: Literal["token"]
    secretName: str


class Autoscaler(Fields):
    version: Literal["v2"]
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    idleTimeoutSeconds: int
    resources: dict[str, dict[str, str]]
    securityContext: dict[str, Any]


class Group(Fields):
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class Workers(Group):
    groupName: str
    replicas: Literal[0]
    minReplicas: Literal[0]
    maxReplicas: int
    priority: int


class RayCluster(Fields):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: Autoscaler
    headGroupSpec: Group
    workerGroupSpecs: list[Workers]


class RayJob(Fields):
    entrypoint: str
    submissionMode: Literal["SidecarMode"]
    backoffLimit: int
    activeDeadlineSeconds: int
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: int
    rayClusterSpec: RayCluster


def manifest(name):
    return yaml.safe_load((DEPLOY / f"{name}.yaml").read_text())


def pods():
    spec = manifest("raycluster")["spec"]
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_the_manifests_hold_fields_of_kuberay_and_one_cluster():
    """KubeRay's own schema is 2 MB that a program wrote, and not kept here; these fields are those that we use of it."""
    cluster, job = manifest("raycluster"), manifest("rayjob")
    assert {cluster["apiVersion"], job["apiVersion"]} == {"ray.io/v1"}
    assert RayCluster(**cluster["spec"]).rayVersion == PINS["ray"]
    assert RayJob(**job["spec"]).rayClusterSpec.model_dump() == RayCluster(**cluster["spec"]).model_dump()


@pytest.mark.skipif(
    "KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS is ray-operator/config/crd/bases of a KubeRay"
)
@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_the_manifests_pass_kuberays_own_schema(name):
    crd = yaml.load((Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{name}s.yaml").read_bytes(), yaml.CSafeLoader)
    schema = next(one["schema"]["openAPIV3Schema"] for one in crd["spec"]["versions"] if one["name"] == "v1")
    schema["properties"]["metadata"] = {"properties": {"name": {}, "generateName": {}}}
    errors = jsonschema.Draft202012Validator(closed(schema)).iter_errors(manifest(name))
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def closed(schema):
    """As Kubernetes has it: what a schema does not name is an error, and a quantity is a number or a text."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    drop = {"type"} if schema.get("x-kubernetes-int-or-string") else set()
    more = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return {**more, **{key: closed(value) for key, value in schema.items() if key not in drop}}


def test_pods_and_what_they_stand_on_are_as_kubernetes_wants_them():
    version = kubernetes_validate.latest_version()
    access = list(yaml.safe_load_all((DEPLOY / "access.yaml").read_text()))
    templates = [{"apiVersion": "v1", "kind": "PodTemplate", "template": pod} for pod in pods()]
    for one in (*access, *templates):
        kubernetes_validate.validate(one, version, strict=True)
    accounts = {one["metadata"]["name"] for one in access if one["kind"] == "ServiceAccount"}
    assert {pod["spec"]["serviceAccountName"] for pod in pods()} == accounts
    policy = next(one for one in access if one["kind"] == "NetworkPolicy")
    assert all(pod["metadata"]["labels"] == policy["spec"]["podSelector"]["matchLabels"] for pod in pods())


def test_pods_run_locked_down_and_gpus_come_with_their_tolerations():
    for pod in pods():
        (container,) = pod["spec"]["containers"]
        assert container["image"].endswith(f"/segray:{__version__}")
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
    head, *workers = manifest("raycluster")["spec"]["headGroupSpec"], *pods()[1:]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    for pod in workers:
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert {one["key"] for one in pod["spec"]["tolerations"]} == {"nvidia.com/gpu", "karpenter.sh/capacity-type"}


def test_the_command_of_the_job_is_one_of_ours():
    args = shlex.split(manifest("rayjob")["spec"]["entrypoint"])
    assert args[:2] == ["segray", "label"]
    cli.cli.main([*args[1:], "--dry-run"], standalone_mode=False)


def test_the_image_is_built_of_what_is_there_and_does_not_run_as_root():
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    copied = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "segray"} <= set(copied)
    assert re.fullmatch(r"python:3\.(11|12)\.\d+-slim-\w+", dict(steps[:1])["FROM"])
    (install,) = [rest for step, rest in steps if "pip install" in rest]
    assert "--constraint constraints.txt" in install
    assert [rest for step, rest in steps if step == "USER"] == ["1000"]
    assert f"segray:{__version__}" in (DEPLOY / "Dockerfile").read_text()


PAGE = (ROOT / "docs" / "deploy.md").read_text()


def test_the_pages_policies_and_settings_parse():
    policies = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
    assert [policy["Version"] for policy in policies] == ["2012-10-17"] * 2
    prometheus, monitor = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    assert prometheus["scrape_configs"][0]["file_sd_configs"]
    labels = monitor["spec"]["selector"]["matchLabels"]
    assert all(pod["metadata"]["labels"] == labels for pod in pods())
    ports = [port["name"] for pod in pods() for port in pod["spec"]["containers"][0]["ports"]]
    assert ports.count(monitor["spec"]["podMetricsEndpoints"][0]["port"]) == len(pods())


def test_the_pages_cost_example_adds_up():
    frames, speed, start = map(
        float, re.search(r"F = ([\d,]+), s = (\d+), t = (\d+)", PAGE.replace(",000", "000")).groups()
    )
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    for nodes, hours, node_hours in [map(float, row) for row in rows]:
        exact = frames / (3600 * nodes * speed) + (start + 5) / 60
        assert (hours, node_hours) == (round(exact, 2), round(exact * nodes, 2))
    assert len(rows) == 3


def test_the_page_names_the_accounts_and_groups_of_the_files():
    for name in ("segray-head", "segray-worker", CLUSTER["provider"]["security_group"]["GroupName"]):
        assert name in PAGE
    assert manifest("raycluster")["spec"]["authOptions"]["secretName"] in PAGE
    assert f"service/{manifest('raycluster')['metadata']['name']}-head-svc" in PAGE
