"""A run waits for nodes of an autoscaler only if the autoscaler can make them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.support.ray_head import ray_head

GIB = 1 << 30
# Ray's autoscaler (v2), whose nodes are processes of this machine.
CLUSTER = {
    "cluster_name": "fake",
    "max_workers": 8,
    "idle_timeout_minutes": 1,
    "upscaling_speed": 1.0,
    "auth": {"ssh_user": "nobody"},
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {
            "resources": {"CPU": 1},
            "labels": {"role": "prepare"},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
        "gpu": {
            "resources": {"CPU": 1, "GPU": 1, "memory": 4 * GIB},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
    "docker": {},
    **{
        f"{kind}_commands": []
        for kind in (
            *("initialization", "setup", "head_setup", "worker_setup"),
            *("head_start_ray", "worker_start_ray"),
        )
    },
}
ASK = """
import sys
from jobs.cluster.start import start_ray, wait_until_it_fits
from jobs.label.options import LabelOptions
address, gpus, role = sys.argv[1:]
options = LabelOptions(
    "in", "out", address=address, device="cuda", num_gpus=gpus, prepare_on=f"role={role}"
)
start_ray(address)
print(wait_until_it_fits(options.machines(), seconds=15).layout.detectors.fewest)
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head node without CPUs, which has an autoscaler."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "cluster.yaml").write_text(json.dumps(CLUSTER))
    words = ["--num-cpus=0", "--include-dashboard=false"]
    words += ["--autoscaling-config", str(folder / "cluster.yaml")]
    variables = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    with ray_head(folder, words, variables) as head:
        time.sleep(3)  # an error in the configuration ends the process by now
        head.check()
        yield head.address


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpus", "role", "said"),
    [
        ("4", "prepare", "4 detectors want 1 GPU and 1.5 GiB of memory each, and 0 fit"),
        ("2", "nobody", "reading and preparing want 0.5 CPU on nodes with role=nobody"),
        ("2", "prepare", None),
    ],
)
def test_only_what_can_be_made_is_waited_for(
    address: str, gpus: str, role: str, said: str | None
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, address, gpus, role],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        check=False,
    )
    if said is None:
        assert done.stdout == "2\n", done.stderr
    else:
        assert said in done.stderr
        assert "the cluster cannot hold the run" in done.stderr
