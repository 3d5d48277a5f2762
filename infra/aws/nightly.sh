#!/usr/bin/env bash
# One night: start the cluster, label what is new, and end the cluster whatever came of it.
# Ends with 0 where all went well. Run it again after a failure: it takes the run up.
set -euo pipefail
if [ "$#" -lt 2 ]; then
  echo "usage: $0 INPUT OUTPUT [label's options]" >&2
  exit 2
fi
cluster="$(dirname "$0")/cluster.yaml"
# What the cluster's nodes know each other by: see file_mounts of cluster.yaml.
token=~/.detr-batch/ray/auth_token
if [ ! -s "$token" ]; then
  (umask 077 && mkdir -p "${token%/*}" && python3 -c 'import secrets; print(secrets.token_hex(32))' >"$token")
fi
trap 'ray down --yes "$cluster"' EXIT
ray up --yes "$cluster"
ray exec "$cluster" "detr-batch submit $(printf '%q ' "$@") --address http://127.0.0.1:8265"
