#!/usr/bin/env bash
# Installs what building, testing and the demo need on Debian, and nothing that is already on PATH.
# Runs as often as you like; asks apt only when something is missing.
set -euo pipefail

missing=()
need() { # command package
    command -v "$1" >/dev/null 2>&1 || PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need cc gcc
need containerd containerd
need ctr containerd
need curl curl
need jq jq
need mmdebstrap mmdebstrap
need protoc protobuf-compiler
need python3 python3
need runc runc
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)

if ! command -v cargo >/dev/null 2>&1; then
    echo "error: no Rust toolchain on PATH: install one from https://rustup.rs (1.88 or later)" >&2
    exit 1
fi
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
echo "installing with apt-get: ${missing[*]}"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: no apt-get here: install these yourself: ${missing[*]}" >&2
    exit 1
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    sudo=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Debian starts services that it installs; a containerd of the machine's own is nothing we use.
if ! { "${sudo[@]}" apt-get update -qq && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-remove --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -20 "$log" >&2
    echo "error: apt-get could not install: ${missing[*]}" >&2
    exit 1
fi
