#!/bin/sh
# Create the RayJob of FILE, named after this Kubernetes Job, look every SECONDS how it is, and end
# when it ends: 0 it succeeded, 3 it failed or is gone, 1 it could not be created.
# A pod that replaces a lost one finds the RayJob there, and waits on.
set -eu
file=$1 seconds=$2
name=$JOB_NAME-run # not as the Job itself: KubeRay names its submitter's Job after the RayJob

if ! kubectl get rayjob "$name" --output name; then
  owner="{\"apiVersion\":\"batch/v1\",\"kind\":\"Job\",\"name\":\"$JOB_NAME\",\"uid\":\"$JOB_UID\"}"
  kubectl patch --local --filename "$file" --type merge --output json \
    --patch "{\"metadata\":{\"name\":\"$name\",\"ownerReferences\":[$owner]}}" |
    kubectl create --filename -
fi

fields='{.status.jobDeploymentStatus} {.status.jobStatus}: {.status.message}'
while true; do
  # An API server that does not answer says nothing of the run: only an answer counts.
  if state=$(kubectl get rayjob "$name" --ignore-not-found --output "jsonpath=$fields"); then
    case $state in
      "Complete SUCCEEDED"*) echo "$name: $state" && exit 0 ;;
      Complete* | Failed* | ValidationFailed*) echo "$name: $state" >&2 && exit 3 ;;
      "") echo "$name: somebody deleted it" >&2 && exit 3 ;;
    esac
  fi
  sleep "$seconds"
done
