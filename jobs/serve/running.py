"""The endpoint that runs on a cluster already: its state, and its end."""

import ray
from ray import serve
from ray.serve.schema import ApplicationStatusOverview

from jobs.cluster.ray_internals import serve_address
from jobs.cluster.start import check_machines, start_ray
from jobs.serve.deploy import NAME, end
from jobs.serve.settings.options import ServeOptions
from pipeline.storage.errors import InputError


def report_or_stop(options: ServeOptions) -> None:
    """Print the state of the endpoint, or end it. Raises InputError if there is none."""
    check_machines(options.machines())
    start_ray(options.address)
    try:
        found = running_endpoint()
        if found is None:
            raise InputError(f"--address {options.address}: no endpoint runs on this cluster")
        if options.stop:
            end(on_cluster=True)
            print("the endpoint has ended")
        else:
            print("\n".join(lines_of(found)))
    finally:
        ray.shutdown()


def running_endpoint() -> ApplicationStatusOverview | None:
    """The endpoint of the cluster that this process is connected to."""
    return serve.status().applications.get(NAME)


def lines_of(found: ApplicationStatusOverview) -> list[str]:
    """The state of an endpoint, with a line for each kind of replica."""
    host, port = serve_address() or ("", 0)
    lines = [f"{NAME}: {found.status.value}, port {port} of each node with replicas ({host})"]
    for name, deployment in found.deployments.items():
        replicas = ", ".join(
            f"{count} {state}" for state, count in deployment.replica_states.items()
        )
        lines.append(f"  {name}: {deployment.status.value}, {replicas or 'no replica'}")
        if deployment.message:
            lines.append(f"    {deployment.message.splitlines()[-1]}")
    return lines


def refuse_second_endpoint(options: ServeOptions) -> None:
    """Raise InputError if the cluster has an endpoint, or proxies that listen elsewhere."""
    if running_endpoint() is not None:
        raise InputError(
            f"--address {options.address}: an endpoint runs on this cluster already; `detr-batch "
            "serve --stop` ends it"
        )
    listening = serve_address()
    if listening not in (None, (options.host, options.port)):
        host, port = listening
        raise InputError(
            f"--host {options.host} --port {options.port}: Ray Serve listens at {host} port {port} "
            "of this cluster, for other applications; give these"
        )
