"""Ray's launcher accepts our cluster on AWS, and a run needs no more rights than ours."""

import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from aiohttp import web
from botocore.session import get_session
from ray.autoscaler._private.aws.config import DEFAULT_AMI
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.accounting.prices import machines
from jobs.cli import main
from pipeline.storage.s3 import S3Files
from tests.chaos.faulty_store import FaultyStore
from tests.support.s3_server import ADMIN, BUCKET, REGION, SECRET
from tests.support.samples import jpeg

AWS = Path(__file__).parents[2] / "infra" / "aws"
RUN_SECONDS = 240


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((AWS / name).read_text(encoding="utf-8"))
    return found


def statements(name: str) -> dict[str, dict[str, Any]]:
    return {statement["Sid"]: statement for statement in document(name)["Statement"]}


def listed(value: Any) -> list[str]:
    """Return a list where a policy may have a string or a list of strings."""
    return [value] if isinstance(value, str) else list(value)


@pytest.fixture
def cluster() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((AWS / "cluster.yaml").read_text(encoding="utf-8"))
    return found


def test_rays_launcher_takes_the_cluster(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))
    cluster["available_node_types"]["gpu"]["max_worker"] = 4
    with pytest.raises(Exception, match="'max_worker' was unexpected"):
        validate_config(prepare_config(cluster))


def test_an_idle_cluster_is_a_head_that_stays(cluster: dict[str, Any]) -> None:
    kinds = cluster["available_node_types"]
    assert cluster["idle_timeout_minutes"] <= 10
    assert not cluster["provider"]["cache_stopped_nodes"]
    assert cluster["head_node_type"] == "head"
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]
    for name in ("cpu", "gpu"):
        assert kinds[name]["min_workers"] == 0
        assert kinds[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_nodes_are_of_known_machines_and_pinned_images(cluster: dict[str, Any]) -> None:
    region = cluster["provider"]["region"]
    image = cluster["docker"]["image"]
    assert image.endswith(f"/detr-batch:{version('detr-batch')}")
    profiles = {}
    for name, kind in cluster["available_node_types"].items():
        node = kind["node_config"]
        assert node["ImageId"] == DEFAULT_AMI[region], "the image that this Ray was tried with"
        priced = machines()[node["InstanceType"]]
        assert priced.region == region
        assert ("GPU" in kind["resources"]) == (not priced.devices.startswith("none"))
        if cpus := re.search(r"\((\d+) CPUs\)", priced.devices):
            assert kind["resources"]["CPU"] == int(cpus[1])
        profiles[name] = node["IamInstanceProfile"]["Name"]
    assert profiles.pop("head") == "detr-batch-head"
    assert profiles == dict.fromkeys(["cpu", "gpu"], "detr-batch-worker")


def test_the_head_may_launch_this_cluster_alone(cluster: dict[str, Any]) -> None:
    rights = statements("iam-policy-head.json")
    name, region = cluster["cluster_name"], cluster["provider"]["region"]
    for sid, key in (
        ("LaunchWorkersOfThisCluster", "aws:RequestTag/ray-cluster-name"),
        ("TagAndEndThem", "aws:ResourceTag/ray-cluster-name"),
    ):
        assert rights[sid]["Condition"] == {"StringEquals": {key: name}}
    profile = cluster["available_node_types"]["gpu"]["node_config"]["IamInstanceProfile"]["Name"]
    assert rights["GiveThemTheirRole"]["Resource"].endswith(f":role/{profile}")
    for sid, statement in rights.items():
        if "*" in listed(statement["Resource"]):  # EC2's Describe actions take no resource names
            assert all(a.startswith("ec2:Describe") for a in listed(statement["Action"])), sid
        else:
            regions = {arn.split(":")[3] for arn in listed(statement["Resource"])}
            assert regions <= {region, ""}, sid


@pytest.fixture
def parliament(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The linter (1.6.4), with a replacement of pkg_resources, which setuptools (82) lacks."""
    asked_for = types.ModuleType("pkg_resources")
    vars(asked_for)["resource_filename"] = lambda package, name: str(files(package) / name)
    monkeypatch.setitem(sys.modules, "pkg_resources", asked_for)
    return pytest.importorskip("parliament")


def findings(parliament: Any, policy: dict[str, Any]) -> list[tuple[str, Any]]:
    found = parliament.analyze_policy_string(json.dumps(policy)).findings
    return [(finding.issue, finding.detail) for finding in found]


def test_policies_are_linted(parliament: Any) -> None:
    assert findings(parliament, document("iam-policy.json")) == []
    # Each resource of a launch may have its own statement, but the linter does not know that.
    for issue, detail in findings(parliament, document("iam-policy-head.json")):
        assert issue == "RESOURCE_MISMATCH"
        assert {entry["action"] for entry in detail} == {"ec2:RunInstances"}
    wrong = document("iam-policy.json")
    wrong["Statement"][0]["Action"] = "s3:ReadObject"
    assert findings(parliament, wrong)[0][0] == "UNKNOWN_ACTION"


@pytest.mark.parametrize("name", ["trust-ec2.json", "trust-irsa.json", "trust-pod-identity.json"])
def test_roles_are_for_one_kind_of_caller(name: str, parliament: Any) -> None:
    (statement,) = document(name)["Statement"]
    for action in listed(statement["Action"]):
        assert parliament.expand_action(action)
    assert "*" not in json.dumps(statement)
    assert statement["Principal"] != "*"
    if name == "trust-irsa.json":
        issuer = statement["Principal"]["Federated"].split("/", 1)[1]
        assert statement["Condition"]["StringEquals"] == {
            f"{issuer}:aud": "sts.amazonaws.com",
            f"{issuer}:sub": "system:serviceaccount:detr-batch:detr-batch",
        }
    if name == "trust-pod-identity.json":
        assert set(listed(statement["Action"])) == {"sts:AssumeRole", "sts:TagSession"}
        tags = statement["Condition"]["StringEquals"]
        assert tags["aws:RequestTag/kubernetes-service-account"] == "detr-batch"
        assert "aws:SourceAccount" in tags


class WatchedStore(FaultyStore):
    """Forwards every request, and records the IAM action that it needs."""

    def __init__(self, target: str):
        super().__init__(target)
        self.actions: set[str] = set()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.actions.add(action_of(request.method, request.raw_path))
        return await super()._handle(request)


def action_of(method: str, address: str) -> str:
    """Return the IAM action that a request to S3 needs."""
    parts = urlsplit(address)
    _, _, key = parts.path.strip("/").partition("/")
    query = parse_qs(parts.query, keep_blank_values=True)
    if method == "POST" and "delete" in query:
        return "s3:DeleteObject"
    if not key:
        return "s3:ListBucket" if method in ("GET", "HEAD") and "list-type" in query else address
    if method == "POST" and {"uploads", "uploadId"} & set(query):
        return "s3:PutObject"
    return {
        "GET": "s3:GetObject",
        "HEAD": "s3:GetObject",
        "PUT": "s3:PutObject",
        "DELETE": "s3:DeleteObject",
    }[method]


@pytest.fixture
def job(s3: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedStore]:
    """A lake; this process becomes a user who has only the rights of iam-policy.json in it."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    admin = {"aws_access_key_id": ADMIN, "aws_secret_access_key": SECRET, "region_name": REGION}
    store = get_session().create_client("s3", endpoint_url=endpoint, **admin)
    for key in ("photos/0.jpg", "photos/deep/1.jpg", "other/2.jpg"):
        store.put_object(Bucket=BUCKET, Key=key, Body=jpeg(len(key)))
    iam = get_session().create_client("iam", endpoint_url=endpoint, **admin)
    iam.create_user(UserName="job")
    made = iam.create_access_key(UserName="job")["AccessKey"]
    policy = (AWS / "iam-policy.json").read_text().replace("example-lake", BUCKET)
    iam.put_user_policy(UserName="job", PolicyName="run", PolicyDocument=policy)
    watched = WatchedStore(endpoint)
    with watched.running():
        monkeypatch.setenv("AWS_ENDPOINT_URL", watched.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
        S3Files.clear_instance_cache()
        yield watched
        S3Files.clear_instance_cache()
    iam.delete_user_policy(UserName="job", PolicyName="run")
    iam.delete_access_key(UserName="job", AccessKeyId=made["AccessKeyId"])
    iam.delete_user(UserName="job")


@pytest.mark.slow
def test_a_run_needs_every_right_of_the_policy_and_no_other(
    job: WatchedStore, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = f"s3://{BUCKET}/photos", f"s3://{BUCKET}/labels"
    label = ["label", source, output, "--model", "shapes-tiny", "--no-page"]
    done = subprocess.run(  # a separate process, so that its workers have its rights
        [sys.executable, "-m", "jobs.cli", *label], timeout=RUN_SECONDS, check=False
    )
    assert done.returncode == 0
    assert main(label) == 0
    assert "nothing new" in capsys.readouterr().out
    for command in (["report"], ["runs", "--verify"], ["compact"]):
        assert main([command[0], output, *command[1:]]) == 0
    assert main(["query", output, "SELECT count(*) FROM latest_images", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2"
    granted = statements("iam-policy.json").values()
    assert job.actions == {action for one in granted for action in listed(one["Action"])}


@pytest.mark.parametrize(
    ("source", "output"), [("other", "labels"), ("photos", "other/labels"), ("", "labels")]
)
def test_other_places_are_forbidden(
    source: str, output: str, job: WatchedStore, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"s3://{BUCKET}/{source}", f"s3://{BUCKET}/{output}"]
    assert main(["label", *places, "--model", "shapes-tiny"]) == 2
    assert "is forbidden" in capsys.readouterr().err


def test_the_policy_names_two_places_and_no_more() -> None:
    rights = statements("iam-policy.json")
    bucket = rights["ListBoth"]["Resource"]
    places = {"ReadInput": "photos", "ReadAndWriteOutput": "labels"}
    for sid, prefix in places.items():
        assert rights[sid]["Resource"] == [f"{bucket}/{prefix}", f"{bucket}/{prefix}/*"]
        assert rights[sid]["Effect"] == "Allow"
    named = [name for prefix in places.values() for name in (prefix, f"{prefix}/*")]
    assert rights["ListBoth"]["Condition"] == {"StringLike": {"s3:prefix": named}}
    assert set(rights) == {*places, "ListBoth"}
    for policy in ("iam-policy.json", "iam-policy-head.json"):
        assert document(policy)["Version"] == "2012-10-17"
        actions = [a for one in statements(policy).values() for a in listed(one["Action"])]
        assert not [action for action in actions if "*" in action]


def test_the_night_is_a_sound_script() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    subprocess.run([shellcheck, "--severity=style", str(AWS / "nightly.sh")], check=True)


@pytest.mark.parametrize("code", [0, 1])
def test_a_night_ends_its_cluster_however_it_went(code: int, tmp_path: Path) -> None:
    stand_in = tmp_path / "ray"
    stand_in.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/said\n[ "$1" != exec ] || exit {code}\n'
    )
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    night = [str(AWS / "nightly.sh"), "s3://lake/my photos", "s3://lake/labels", "--spot"]
    done = subprocess.run(night, env=environment, check=False)
    assert done.returncode == code
    file = f"{AWS}/cluster.yaml"
    assert (tmp_path / "said").read_text().splitlines() == [
        f"up --yes {file}",
        f"exec {file} detr-batch submit s3://lake/my\\ photos s3://lake/labels --spot  "
        "--address http://127.0.0.1:8265",
        f"down --yes {file}",
    ]
    assert subprocess.run(night[:2], env=environment, check=False).returncode == 2
