#!/usr/bin/env bash
# train SCRIPT NAME: runs tests/models/SCRIPT in a container of the MLflow runtime's image and leaves the
# model in target/NAME. Used by the test of docs/first-hour.md in place of a virtual environment.
set -euo pipefail
image=stokehold.local/runtime-mlflow:1
stokehold image import target/images/runtime-mlflow.oci.tar --quiet
socket=$(sed -n 's/^containerd *= *"\(.*\)"/\1/p' "$STOKEHOLD_DATA/config/agent.toml")
for _ in $(seq 600); do
    ctr -a "$socket" -n stokehold image check -q 2>/dev/null | grep -q runtime-mlflow && break
    sleep 0.2
done
work=$PWD/target/training
mkdir -p "$work"
cp "tests/models/$1" "$work"
chown -R 65534:65534 "$work"
ctr -a "$socket" -n stokehold run --rm \
    --mount "type=bind,src=$work,dst=/training,options=rbind:rw" \
    --mount "type=tmpfs,dst=/tmp,options=size=256m" \
    --env HOME=/tmp --env MLFLOW_DISABLE_TELEMETRY=true \
    "$image" "train-$2" /usr/bin/python3 "/training/$1" "/training/$2"
mv "$work/$2" "target/$2"
