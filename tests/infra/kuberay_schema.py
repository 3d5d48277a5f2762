"""The schema of KubeRay's ray.io/v1 objects: every field of its API reference, at v1.7.0.

Fields that no manifest here uses are objects without detail. Pod templates belong to Kubernetes,
whose own schemas check them (`manifests.check`).
"""

from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
ANY_OBJECT: Schema = {"type": "object"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def fields(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Make the schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


MANAGED_BY = one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
DELETION = one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")

AUTOSCALER = fields(
    resources=ANY_OBJECT,
    image=TEXT,
    imagePullPolicy=TEXT,
    securityContext=ANY_OBJECT,
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    env=listed(ANY_OBJECT),
    envFrom=listed(ANY_OBJECT),
    volumeMounts=listed(ANY_OBJECT),
    command=listed(TEXT),
    args=listed(TEXT),
)
HEAD_GROUP = fields(
    required=("rayStartParams", "template"),
    template=ANY_OBJECT,
    headService=ANY_OBJECT,
    enableIngress=FLAG,
    ingressOptions=ANY_OBJECT,
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
)
WORKER_GROUP = fields(
    required=("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    suspend=FLAG,
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    priority={"type": "integer"},
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=ANY_OBJECT,
    scaleStrategy=fields(workersToDelete=listed(TEXT)),
    numOfHosts=COUNT,
)
RAY_CLUSTER = fields(
    required=("headGroupSpec",),
    upgradeStrategy=fields(type=one_of("Recreate", "None")),
    authOptions=fields(enableK8sTokenAuth=FLAG, secretName=TEXT, mode=one_of("disabled", "token")),
    suspend=FLAG,
    managedBy=MANAGED_BY,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=ANY_OBJECT,
    historyServerOptions=ANY_OBJECT,
    networkPolicy=ANY_OBJECT,
    tlsOptions=fields(enabled=FLAG),
    headGroupSpec=HEAD_GROUP,
    rayVersion=TEXT,
    workerGroupSpecs=listed(WORKER_GROUP),
)
RAY_JOB = fields(
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    rayClusterSpec=RAY_CLUSTER,
    submitterPodTemplate=ANY_OBJECT,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    submitterConfig=fields(backoffLimit=COUNT),
    managedBy=MANAGED_BY,
    deletionStrategy=fields(
        onSuccess=fields(policy=DELETION),
        onFailure=fields(policy=DELETION),
        deletionRules=listed(
            fields(
                required=("policy", "condition"),
                policy=DELETION,
                condition=fields(
                    jobStatus=one_of("SUCCEEDED", "FAILED"),
                    jobDeploymentStatus=one_of("Failed"),
                    ttlSeconds=COUNT,
                ),
            )
        ),
    ),
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=TEXT,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=COUNT,
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)
RAY_CRON_JOB = fields(
    required=("schedule", "jobTemplate"),
    schedule=TEXT,
    timeZone={"type": "string", "minLength": 1},
    suspend=FLAG,
    jobTemplate=RAY_JOB,
)
RAY_SERVICE = fields(
    rayClusterDeletionDelaySeconds=COUNT,
    serveService=ANY_OBJECT,
    upgradeStrategy=fields(
        type=one_of("NewCluster", "NewClusterWithIncrementalUpgrade", "None"),
        clusterUpgradeOptions=ANY_OBJECT,
    ),
    managedBy=MANAGED_BY,
    serveConfigV2=TEXT,
    rayClusterConfig=RAY_CLUSTER,
    excludeHeadPodFromServeSvc=FLAG,
)
SPECS = {
    "RayCluster": RAY_CLUSTER,
    "RayJob": RAY_JOB,
    "RayCronJob": RAY_CRON_JOB,
    "RayService": RAY_SERVICE,
}


def check_fields(document: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError unless KubeRay has these fields, of these types."""
    spec = SPECS[document["kind"]]
    whole = fields(
        required=("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind=TEXT,
        metadata=fields(
            required=("name",), name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS
        ),
        spec=spec,
    )
    Draft202012Validator(whole).validate(document)
