#!/usr/bin/env bash
# The main job on one machine, from nothing to nothing: a real MLflow model, trained a moment before,
# answers over HTTPS from a container; another gets more load than one replica takes, and replicas come
# and go. Everything lives under target/demo (or /var/tmp/stokehold-demo,
# where users other than the owner may not enter the checkout) and is removed at the end.
# Run it by `make demo`, which builds what it needs. It can be run again, also after it was killed.
# DEMO_PROGRAMS=DIR takes the programs from there, DEMO_PORT_BASE=PORT uses other ports.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$PWD/target
base=$target/demo
folder=$PWD
while [ "$folder" != / ]; do
    case $(stat -c %A "$folder") in
        *x | *t) folder=$(dirname "$folder") ;;
        *) base=/var/tmp/stokehold-demo && break ;;
    esac
done
data=$base/data
work=$base/work
export HOME=$base/home
export PATH=$base/bin:$PATH
unset STOKEHOLD_DATA STOKEHOLD_PORT_BASE STOKEHOLD_SERVER STOKEHOLD_TOKEN_FILE STOKEHOLD_CONTEXT STOKEHOLD_CA_FILE SUDO_USER XDG_CONFIG_HOME
image=stokehold.local/runtime-mlflow:1
ports=${DEMO_PORT_BASE:-18440}
programs=${DEMO_PROGRAMS:-$target/release}
started=$SECONDS

if [ "$(id -u)" -ne 0 ]; then
    echo "error: the demo runs containers and needs root: sudo make demo" >&2
    exit 1
fi

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' plain=$'\e[0m'
else
    bold='' dim='' green='' plain=''
fi
number=0
step() {
    number=$((number + 1))
    printf '\n%s%2d. %s%s %s(%d s)%s\n' "$bold" $number "$*" "$plain" "$dim" $((SECONDS - started)) "$plain"
}
show() { # a command as the reader would type it, then what it says
    printf '%s$ %s%s\n' "$dim" "$*" "$plain"
    "$@"
}
check() {
    printf '%s✓%s %s\n' "$green" "$plain" "$*"
}
fail() {
    echo "error: $*" >&2
    exit 1
}
cleanup() {
    status=$?
    if [ $status -ne 0 ]; then
        echo "the demo failed (exit $status); the daemons' last lines:" >&2
        tail -n 15 "$data"/logs/*.log >&2 2>/dev/null || true
    fi
    stokehold down --data "$data" >/dev/null 2>&1 || true
    rm -rf "$base"
    exit $status
}

# Whatever an earlier demo left when it was killed.
"$programs/stokehold" down --data "$data" >/dev/null 2>&1 || true
rm -rf "$base"
trap cleanup EXIT
trap 'exit 130' INT TERM
mkdir -p "$HOME" "$work" "$base/bin" "$base/share/stokehold"
for program in stokehold stokehold-agent stokehold-gateway stokehold-logshim stokehold-scheduler; do
    ln "$programs/$program" "$base/bin/" 2>/dev/null || cp "$programs/$program" "$base/bin/"
done
cp -r packaging/runtimes "$base/share/stokehold/"
chmod 711 "$base"

step "Start a whole cluster on this machine: scheduler, agent, gateway, a containerd of its own"
echo "(replicas that a load brought are kept for 60 s to 5 min after it; 15 s here, so that you need not wait)"
show stokehold up --data "$data" --detach --node demo --port-base "$ports" \
    --set scheduler.autoscaler.hold_min_seconds=15 --set scheduler.autoscaler.hold_max_seconds=15
context=$(stokehold context show --output json)
field() { python3 -c 'import json,sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1" <<<"$context"; }
gateway=$(field gateway) ca=$(field ca_file) token_file=$(field token_file)

result() { # FILE EXPRESSION: what the expression says of the JSON in the file, which it knows as `it`
    python3 -c 'import json, sys; it = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$1" "$2"
}

step "Import the MLflow runtime's image; the node pulls it ahead of need"
show stokehold image import "$target/images/runtime-mlflow.oci.tar"

step "Train a scikit-learn model with MLflow, in a container of that very image"
config=$(pgrep -af "stokehold-agent .*$data" | grep -o -- "${data}[^ ]*agent.toml" | head -1)
socket=$(sed -n 's/^containerd *= *"\(.*\)"/\1/p' "$config")
in_container() { # name, arguments of python3
    local name=$1
    shift
    ctr -a "$socket" -n stokehold run --rm \
        --mount "type=bind,src=$work,dst=/training,options=rbind:rw" \
        --mount "type=tmpfs,dst=/tmp,options=size=256m" \
        --env HOME=/tmp --env MLFLOW_DISABLE_TELEMETRY=true \
        "$image" "$name" /usr/bin/python3 "$@"
}
for _ in $(seq 600); do
    ctr -a "$socket" -n stokehold image check -q 2>/dev/null | grep -q runtime-mlflow && break
    sleep 0.2
done
cp tests/models/train_iris.py tests/models/train_forest.py tests/models/predict.py "$work"
chown -R 65534:65534 "$work"
in_container demo-train /training/train_iris.py /training/iris 2>"$work/train.log" || fail "$(cat "$work/train.log")"
check "the model's files: $(ls "$work/iris" | tr '\n' ' ')"

step "Push it: hashed, cut into chunks, registered as iris/1"
show stokehold model push "$work/iris" --name iris

step "Deploy it"
show stokehold deploy iris --model iris/1

step "Query it, with nothing but curl"
cp tests/models/iris_rows.json "$work/rows.json"
ask() {
    # The token goes by a file that only root can read, never by an argument.
    curl --silent --show-error --fail-with-body --max-time 30 --cacert "$ca" \
        --config <(printf 'header = "Authorization: Bearer %s"\n' "$(cat "$token_file")") \
        --header 'Content-Type: application/json' --data-binary @"$work/rows.json" \
        "$gateway/serving-endpoints/iris/invocations"
}
printf '%s$ curl --cacert ca.pem -H "Authorization: Bearer ..." -d @rows.json %s/serving-endpoints/iris/invocations%s\n' \
    "$dim" "$gateway" "$plain"
served=$(ask)
echo "$served"
direct=$(in_container demo-direct /training/predict.py /training/iris /training/rows.json | tail -1)
python3 - "$served" "$direct" <<'PY' || fail "the endpoint answered otherwise than the model run directly: $direct"
import json, sys
served, direct = (json.loads(text)["predictions"] for text in sys.argv[1:])
sys.exit(served != direct)
PY
check "the same as the model says when it is run directly: $direct"
show stokehold describe iris

step "Kill the agent with -9; requests go on, the replica is the same when the agent is back"
replica_pid() { ctr -a "$socket" -n stokehold task ls | awk '$3 == "RUNNING" {print $2}'; }
agent_pid() { pgrep -f "stokehold-agent .*$data" | head -1; }
before=$(replica_pid)
killed=$(agent_pid)
kill -9 "$killed"
for _ in $(seq 30); do ask >/dev/null || fail "a request failed while the agent was gone"; done
check "30 requests answered while agent $killed was dead or starting again"
for _ in $(seq 300); do
    now=$(agent_pid || true)
    [ -n "$now" ] && [ "$now" != "$killed" ] && stokehold describe iris | grep -q ready && break
    sleep 0.1
done
[ "$(replica_pid)" = "$before" ] || fail "the replica was restarted"
check "agent $(agent_pid) is back and has adopted the replica, pid $before as before"
ask >/dev/null

step "Train a forest that takes about 20 ms for a row on this machine, and serve it with 1 to 3 replicas"
show stokehold delete iris --yes
in_container demo-forest /training/train_forest.py /training/forest 17 >"$work/forest.json" 2>"$work/train.log" ||
    fail "$(cat "$work/train.log")"
cat "$work/forest.json"
show stokehold model push "$work/forest" --name forest
# Three of these fit on two cores; each takes one request at a time, so that one of them is full soon.
show stokehold deploy forest --model forest/1 --target-concurrency 1 --min-replicas 1 --max-replicas 3 \
    --cpu 0.6 --memory 512MiB
printf '%s$ stokehold load forest --rps 3 --over 5s --quiet --output json%s\n' "$dim" "$plain"
stokehold load forest --rps 3 --over 5s --arrivals uniform --quiet --output json >"$work/single.json"
median=$(result "$work/single.json" 'it["latency"]["from_send"]["p50_ms"]')
check "one request at a time takes $median ms (the median, as the client sees it)"

# On a machine where a request takes longer the same load would be another one: what counts is that more
# than one request is there at once.
most=$(python3 -c "print(max(6, min(60, round(1500 / $median))))")
rps=$(python3 -c "print(max(1, $most // 12))")..$most
if [ "$most" = 60 ]; then grows="from 5 to 60"; else grows="as many as keep this slow machine as busy as 5..60 would a quick one, $rps"; fi
step "Load it: requests a second grow $grows; demand, target and replicas are at the end of the line"
printf '%s$ stokehold load forest --rps %s --over 60s --timeout 100s --max-in-flight 900%s\n' "$dim" "$rps" "$plain"
stokehold load forest --rps "$rps" --over 60s --timeout 100s --max-in-flight 900 --fail-over 0% \
    --output json >"$work/load.json" ||
    fail "requests failed: $(result "$work/load.json" '[(o["outcome"], o["count"], o.get("said")) for o in it["outcomes"]], it["requests"]')"
result "$work/load.json" '"%d requests, %d succeeded; p50 %.0f ms, p99 %.0f ms from when they were to be sent" % (
    it["requests"]["intended"], it["requests"]["succeeded"],
    it["latency"]["from_intended"]["p50_ms"], it["latency"]["from_intended"]["p99_ms"])'
least=$(result "$work/load.json" 'it["replicas"]["ready_least"]')
reached=$(result "$work/load.json" 'it["replicas"]["ready_most"]')
[ "$least" = 1 ] || fail "the load began with $least ready replicas, not 1"
[ "$reached" -ge 2 ] || fail "no replica was added under load"
check "replicas went from $least to $reached, and no request failed"

step "The load is over; the replicas that it brought go again"
for _ in $(seq 60); do
    stokehold describe forest --output json >"$work/now.json"
    now=$(result "$work/now.json" '"demand %.1f  target %d  wanted %d  ready %d  there %d" % (
        it["decisions"][0]["demand"] or 0, it["decisions"][0]["target_concurrency"],
        it["decisions"][0]["desired_replicas"], it["decisions"][0]["ready_replicas"],
        sum(not replica["ended"] for replica in it["replicas"]))')
    echo "$now"
    case $now in *"ready 1  there 1") break ;; esac
    sleep 3
done
case $now in *"ready 1  there 1") ;; *) fail "the replicas did not go: $now" ;; esac
check "one replica is left"

step "Delete the endpoint, take everything down"
show stokehold delete forest --yes
show stokehold down --data "$data"
left=$(pgrep -af "$data" | grep -v "^$$ " || true)
[ -z "$left" ] || fail "processes are left: $left"
if grep -q "$data" /proc/self/mounts; then fail "mounts are left: $(grep "$data" /proc/self/mounts)"; fi
[ ! -e "$data" ] || fail "$data is left"
check "no process, no mount, no folder is left"
printf '\n%sDone in %d s.%s\n' "$bold" $((SECONDS - started)) "$plain"
