"""A line for prices of machines that are plainly not those that a run computes on."""

from collections.abc import Sequence

from jobs.accounting.node_hours import Rates
from jobs.accounting.plurals import counted
from jobs.accounting.prices import Machine
from jobs.cluster.placement import ACCELERATOR, Node

# Pods have fewer CPUs than their machine. Another machine has twice as many, or half of them.
PLAINLY = 2.0


def price_notice(rates: Rates, nodes: Sequence[Node], device: str, gpu_name: str = "") -> str:
    """What differs between the machines that are priced and the `nodes` that there are; "" if none.

    `device` is that of the detectors, "cpu" or "cuda". `gpu_name` is the kind of the GPUs of this
    machine, where Ray does not know it. Nodes that a cluster has yet to start are not compared.
    """
    if rates.gpu is None:
        return ""
    with_gpu = [node for node in nodes if node.resources.get("GPU")]
    others = [node for node in nodes if not node.resources.get("GPU")]
    found = [_gpu_difference(rates.gpu, node, gpu_name) for node in with_gpu]
    if device == "cpu" and not with_gpu and rates.gpu.accelerators[0] and rates.cpu is None:
        found.append(f"no node has a GPU, and {rates.gpu.instance_type} has {rates.gpu.devices}")
    elif rates.cpu is not None or not rates.gpu.accelerators[0]:
        found += [_cpu_difference(rates.cpu or rates.gpu, node) for node in others]
    return next((text for text in found if text), "")


def _gpu_difference(machine: Machine, node: Node, gpu_name: str) -> str:
    count, kind = machine.accelerators
    gpus = int(node.resources["GPU"])
    named = node.labels.get(ACCELERATOR) or gpu_name
    if gpus != count or (named and kind not in named.replace("-", " ").split()):
        has = f"{gpus} x {named}" if named else counted(gpus, "GPU")
        return f"a node has {has}, and {machine.instance_type} has {machine.devices}"
    return _cpu_difference(machine, node)


def _cpu_difference(machine: Machine, node: Node) -> str:
    cpus = node.resources.get("CPU", 0)
    if cpus and 1 / PLAINLY < cpus / machine.cpus < PLAINLY:
        return ""
    return f"a node has {counted(int(cpus), 'CPU')}, and {machine.instance_type} {machine.cpus}"
