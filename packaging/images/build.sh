#!/bin/bash
# Builds the runtimes' base images as OCI archives, from Debian and PyPI packages alone: no registry, no
# image builder, no daemon. The layers, the configuration and the manifest are written here, so that
# the same inputs give the same digests on every machine.
#
#   build.sh base|runtime-mlflow|runtime-probe|all [--out DIR]    DIR defaults to target/images
#   build.sh lock                     pin packages anew: requirements.in -> requirements.txt
#
# Gives DIR/runtime-NAME.oci.tar, reference stokehold.local/runtime-NAME:1. What is there and was made
# from the same inputs is left alone. Load one with
#   ctr -n stokehold image import DIR/runtime-NAME.oci.tar
#
# Needs root (the base's own Python compiles its modules, by chroot), mmdebstrap, jq, python3 with venv
# for uv (or uv itself), and cargo for runtime-probe.
#   PROBE_BINARY=PATH     take this static stokehold-probe instead of building one
#   PROBE_PROFILE=NAME    cargo profile to build it with (release)
#   DEBIAN_MIRROR=URL     where Debian packages come from (deb.debian.org)
set -Eeuo pipefail
trap 'echo "build.sh: line $LINENO failed: $BASH_COMMAND" >&2' ERR

SUITE=bookworm
PYTHON=3.11
SITE=usr/local/lib/python$PYTHON/dist-packages
UV_VERSION=0.13.8
PLATFORM=x86_64-manylinux_2_28 # bookworm's glibc is 2.36
TAG=1
export SOURCE_DATE_EPOCH=1767225600 # 2026-01-01: the date of every file and image made here
export LC_ALL=C TZ=UTC
umask 022

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$HERE/../.." && pwd)
OUT=$REPO/target/images
WORK= # this run's scratch folder, made in main

say() { printf '[%s +%3ds] %s\n' "$(date +%T)" "$SECONDS" "$*" >&2; }
die() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }

need() { # COMMAND PACKAGE
  command -v "$1" >/dev/null || die "$1 is not installed: apt-get install $2"
}

# One digest of the files named, their names left out, so that the checkout may lie anywhere.
digest_of() { cat -- "$@" | sha256sum | cut -d' ' -f1; }

# fresh STAMP KEY FILE...: all files are there and were made from inputs that hash to KEY.
fresh() {
  local stamp=$1 key=$2 file
  shift 2
  [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] || return 1
  for file; do [ -e "$file" ] || return 1; done
}

# ---------------------------------------------------------------- layers and archives

# layer TREE FILE [TAR-OPTION...]: packs a tree as one gzipped layer, with its diff id in FILE.diff_id.
layer() {
  local tree=$1 file=$2
  shift 2
  tar --create --format=posix --pax-option='delete=atime,delete=ctime' --sort=name \
    --mtime="@$SOURCE_DATE_EPOCH" --numeric-owner "$@" -C "$tree" . |
    tee >(sha256sum | cut -d' ' -f1 >"$WORK/diff_id") | gzip -n -6 >"$file.new"
  # The shell does not wait for the process in >(): its output is there once it is not empty.
  until [ -s "$WORK/diff_id" ]; do sleep 0.05; done
  mv "$WORK/diff_id" "$file.diff_id"
  mv "$file.new" "$file"
}

# blob LAYOUT FILE: puts a file under blobs/ and prints {"digest","size"}.
blob() {
  local digest
  digest=$(digest_of "$2")
  cp --reflink=auto "$2" "$1/blobs/sha256/$digest"
  jq -nc --arg d "sha256:$digest" --argjson s "$(stat -c %s "$2")" '{digest: $d, size: $s}'
}

# archive NAME CONFIG-JSON LAYER...: writes OUT/NAME.oci.tar.
archive() {
  local name=$1 config=$2 layout=$WORK/layout reference=stokehold.local/$1:$TAG created
  shift 2
  created=$(date -d "@$SOURCE_DATE_EPOCH" +%FT%TZ)
  mkdir -p "$layout/blobs/sha256"
  local diffs='[]' layers='[]' file
  for file; do
    diffs=$(jq -c --arg d "sha256:$(cat "$file.diff_id")" '. + [$d]' <<<"$diffs")
    layers=$(jq -c --argjson b "$(blob "$layout" "$file")" \
      '. + [{mediaType: "application/vnd.oci.image.layer.v1.tar+gzip"} + $b]' <<<"$layers")
  done
  jq -nc --arg created "$created" --argjson config "$config" --argjson diffs "$diffs" '{
    created: $created, architecture: "amd64", os: "linux", config: $config,
    rootfs: {type: "layers", diff_ids: $diffs},
    history: [$diffs[] | {created: $created, created_by: "packaging/images/build.sh"}]
  }' >"$WORK/config.json"
  jq -nc --argjson config "$(blob "$layout" "$WORK/config.json")" --argjson layers "$layers" '{
    schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: ({mediaType: "application/vnd.oci.image.config.v1+json"} + $config), layers: $layers
  }' >"$WORK/manifest.json"
  # containerd takes the name from the first annotation, everybody else from the second.
  jq -nc --arg name "$reference" --argjson manifest "$(blob "$layout" "$WORK/manifest.json")" '{
    schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: [{mediaType: "application/vnd.oci.image.manifest.v1+json"} + $manifest + {
      platform: {architecture: "amd64", os: "linux"},
      annotations: {"io.containerd.image.name": $name, "org.opencontainers.image.ref.name": $name}
    }]
  }' >"$layout/index.json"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
  tar --create --format=ustar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 \
    --numeric-owner -C "$layout" -f "$OUT/$name.oci.tar.new" oci-layout index.json blobs
  mv "$OUT/$name.oci.tar.new" "$OUT/$name.oci.tar"
  rm -rf "$layout"
  say "$name: $reference, $(jq -r '.manifests[0].digest' <<<"$(tar -xOf "$OUT/$name.oci.tar" index.json)")"
}

# A root in which any uid may run: the mount points are there, since the root is read-only later, and
# nothing of this machine (names, resolver, certificates) is.
skeleton() {
  local root=$1
  mkdir -p "$root"/{etc,tmp,run/stokehold,model,proc,sys,dev}
  chmod 1777 "$root/tmp"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' \
    >"$root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
  printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
  : >"$root/etc/resolv.conf"
  : >"$root/etc/hostname"
  printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
}

# ---------------------------------------------------------------- images

base_key() { digest_of "$HERE/build.sh" "$HERE/base/packages.txt"; }

build_base() {
  local key root=$OUT/base.root packages
  key=$(base_key)
  if fresh "$OUT/base.stamp" "$key" "$OUT/base.layer.gz" "$root"; then
    say "base: unchanged"
    return
  fi
  [ "$(id -u)" = 0 ] || die "the base layer needs root: run it with sudo"
  need mmdebstrap mmdebstrap
  packages=$(grep -v '^#' "$HERE/base/packages.txt" | paste -sd,)
  rm -rf "$OUT/base.stamp" "$root"
  say "base: unpacking Debian $SUITE"
  mmdebstrap --quiet --variant=extract --components=main --include="$packages" \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    "$SUITE" "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$WORK/mmdebstrap" 2>&1 ||
    die "mmdebstrap: $(tail -n 20 "$WORK/mmdebstrap")"

  rm -rf "$root"/var/{cache,log,lib/apt,backups}/* "$root"/etc/apt "$root"/etc/ssl/certs/* \
    "$root"/usr/share/{man,locale,lintian,bug} "$root"/dev/* "$root"/run/*
  find "$root" -perm /6000 -exec chmod a-s {} +
  ln -sfn "python$PYTHON" "$root/usr/bin/python3"
  # What ca-certificates' own script, which has not run, would have made.
  cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
  skeleton "$root"
  mkdir -p "$root/$SITE"

  say "base: compiling Python's own modules"
  compile_python "$root" "/usr/lib/python$PYTHON"
  say "base: packing"
  layer "$root" "$OUT/base.layer.gz"
  printf '%s\n' "$key" >"$OUT/base.stamp"
}

# compile_python ROOT DIR: bytecode made by the root's own interpreter, so that its version fits. It is
# never checked against its source again: the root is read-only, and a check costs a stat per module.
compile_python() {
  local root=$1 dir=$2
  mkdir -p "$root/dev/shm" # semaphores of the workers
  if ! env -i PATH=/usr/sbin:/usr/bin:/bin PYTHONHASHSEED=0 \
    chroot "$root" /usr/bin/python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash "$dir" \
    >"$WORK/compileall" 2>&1; then
    # Some packages ship templates, or code of newer Pythons that no one imports.
    grep -q '^\*\*\* ' "$WORK/compileall" || die "compileall in $root: $(tail -n 5 "$WORK/compileall")"
    say "modules that do not compile and stay as they are: $(grep -c '^\*\*\* ' "$WORK/compileall")"
  fi
  rm -rf "$root/dev/shm"
}

find_uv() {
  UV=$(command -v uv || true)
  [ -n "$UV" ] && return
  UV=$OUT/.uv-$UV_VERSION/bin/uv
  [ -x "$UV" ] && return
  say "installing uv $UV_VERSION"
  need python3 'python3 python3-venv'
  rm -rf "${UV%/bin/uv}"
  python3 -m venv "${UV%/bin/uv}"
  "${UV%/bin/uv}/bin/pip" install --quiet --disable-pip-version-check "uv==$UV_VERSION"
}

build_runtime_mlflow() {
  local key root=$WORK/rootfs site file=$OUT/runtime-mlflow.layer.gz
  build_base
  key=$({ base_key; digest_of "$HERE/runtime-mlflow/requirements.txt"; } | sha256sum | cut -d' ' -f1)
  if fresh "$OUT/runtime-mlflow.stamp" "$key" "$OUT/runtime-mlflow.oci.tar"; then
    say "runtime-mlflow: unchanged"
    return
  fi
  rm -f "$OUT/runtime-mlflow.stamp"
  find_uv
  # A copy of the base by hard links: only new files come into it, and only they make the layer.
  cp -al "$OUT/base.root" "$root"
  site=$root/$SITE
  say "runtime-mlflow: installing $(grep -c '==' "$HERE/runtime-mlflow/requirements.txt") packages"
  "$UV" pip install --quiet --no-config --require-hashes --only-binary :all: \
    --python-version "$PYTHON" --python-platform "$PLATFORM" --target "$site" \
    -r "$HERE/runtime-mlflow/requirements.txt" >&2
  # Scripts whose first line names this machine's Python; tests; what only compilers read.
  rm -rf "$site/bin" "$site/.lock"
  find "$site" -depth -type d -name tests -exec rm -rf {} +
  find "$site" -type f \( -name '*.pyi' -o -name '*.a' -o -name '*.h' -o -name '*.pxd' -o -name '*.pyx' \) -delete
  say "runtime-mlflow: compiling modules"
  compile_python "$root" "/$SITE"
  say "runtime-mlflow: packing $(du -sm "$site" | cut -f1) MB"
  mkdir -p "$WORK/site/${SITE%/*}"
  mv "$site" "$WORK/site/$SITE"
  layer "$WORK/site" "$file" --owner=0 --group=0 --mode='u=rwX,go=rX'
  archive runtime-mlflow '{
    "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"],
    "User": "65534:65534", "WorkingDir": "/model", "StopSignal": "SIGTERM"
  }' "$OUT/base.layer.gz" "$file"
  rm -f "$file" "$file.diff_id"
  printf '%s\n' "$key" >"$OUT/runtime-mlflow.stamp"
}

build_runtime_probe() {
  local key root=$WORK/probe binary=${PROBE_BINARY:-} profile=${PROBE_PROFILE:-release} file
  if [ -z "$binary" ]; then
    say "runtime-probe: building the static binary"
    (cd "$REPO" && RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --locked \
      -p stokehold-probe --target x86_64-unknown-linux-gnu --profile "$profile" >&2)
    binary=$(cd "$REPO" && cargo metadata --no-deps --format-version 1 | jq -r .target_directory)
    binary+=/x86_64-unknown-linux-gnu/${profile/#dev/debug}/stokehold-probe
  fi
  [ -x "$binary" ] || die "no executable at $binary: set PROBE_BINARY to a static stokehold-probe"
  key=$(digest_of "$HERE/build.sh" "$binary")
  if fresh "$OUT/runtime-probe.stamp" "$key" "$OUT/runtime-probe.oci.tar"; then
    say "runtime-probe: unchanged"
    return
  fi
  if readelf -l "$binary" 2>/dev/null | grep -q INTERP; then
    die "$binary needs a dynamic loader, and the image has none: build it with -C target-feature=+crt-static"
  fi
  rm -f "$OUT/runtime-probe.stamp"
  skeleton "$root"
  install -m 0755 "$binary" "$root/stokehold-probe"
  file=$OUT/runtime-probe.layer.gz
  layer "$root" "$file" --owner=0 --group=0
  archive runtime-probe '{
    "Cmd": ["/stokehold-probe"], "User": "65534:65534", "WorkingDir": "/", "StopSignal": "SIGTERM"
  }' "$file"
  rm -f "$file" "$file.diff_id"
  printf '%s\n' "$key" >"$OUT/runtime-probe.stamp"
}

lock() {
  find_uv
  say "pinning runtime-mlflow"
  {
    printf '# Pinned by "packaging/images/build.sh lock" from requirements.in. Do not edit.\n'
    "$UV" pip compile --quiet --no-config --python-version "$PYTHON" --python-platform "$PLATFORM" \
      --only-binary :all: --generate-hashes --no-header --no-annotate "$HERE/runtime-mlflow/requirements.in"
  } >"$WORK/requirements.txt"
  cp "$WORK/requirements.txt" "$HERE/runtime-mlflow/requirements.txt"
}

# ---------------------------------------------------------------- main

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2; }

main() {
  local what=()
  while [ $# -gt 0 ]; do
    case $1 in
      --out) [ $# -ge 2 ] || usage; OUT=$(realpath -m "$2"); shift 2 ;;
      base | runtime-mlflow | runtime-probe | lock) what+=("$1"); shift ;;
      all) what+=(runtime-mlflow runtime-probe); shift ;;
      *) usage ;;
    esac
  done
  [ ${#what[@]} -gt 0 ] || usage
  [ "$(uname -m)" = x86_64 ] || die "images are built for x86_64 and this machine is $(uname -m)"
  need jq jq
  mkdir -p "$OUT"
  exec 9>"$OUT/.lock"
  flock -n 9 || { say "another build.sh is at work in $OUT: waiting"; flock 9; }
  rm -rf "$OUT"/.work.* # of runs that were killed: the lock is ours
  WORK=$(mktemp -d "$OUT/.work.XXXXXX")
  trap 'rm -rf "$WORK"' EXIT
  local one file
  for one in "${what[@]}"; do
    case $one in
      base) build_base ;;
      runtime-mlflow) build_runtime_mlflow ;;
      runtime-probe) build_runtime_probe ;;
      lock) lock ;;
    esac
  done
  for file in "$OUT"/*.oci.tar; do
    [ -e "$file" ] && say "$(du -m "$file" | cut -f1) MB  $file"
  done
  say "done"
}

main "$@"
