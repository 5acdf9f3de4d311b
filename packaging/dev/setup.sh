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
need docker-registry docker-registry
need dpkg-shlibdeps dpkg-dev
need faketime faketime
need jq jq
need mmdebstrap mmdebstrap
need protoc protobuf-compiler
need python3 python3
need rpm rpm
need runc runc
need ip iproute2
need nft nftables
need shellcheck shellcheck
need systemd-nspawn systemd-container
need nsenter util-linux
need setpriv util-linux
need flock util-linux
need readelf binutils
need pgrep procps
# Debian's gcc only recommends the headers and libraries that it cannot link without.
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
echo 'int main(void) { return 0; }' >"$probe/a.c"
cc "$probe/a.c" -o "$probe/a" 2>/dev/null || missing+=(libc6-dev)
[ -x /usr/lib/cni/bridge ] || [ -x /opt/cni/bin/bridge ] || missing+=(containernetworking-plugins)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
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
log=$probe/apt.log
# Debian starts services that it installs; a containerd of the machine's own is nothing we use.
if ! { "${sudo[@]}" apt-get update -qq && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-remove --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -20 "$log" >&2
    echo "error: apt-get could not install: ${missing[*]}" >&2
    exit 1
fi
