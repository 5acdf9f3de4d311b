#!/usr/bin/env bash
# Builds the packages stokehold-node, stokehold-scheduler and stokehold, as .deb and .rpm, from programs
# that are built already (`make build`): target/packages/.
#
#   PKG_REVISION=N        revision of this packaging of the same version, 1 unless given
#   SOURCE_DATE_EPOCH=S   the date of everything inside; that of the last commit unless given
#   PACKAGES_OUT=DIR      where the packages go
#   PACKAGES_KINDS=KINDS  which of "deb rpm"
#   PACKAGES_FAST=1       larger .debs, sooner
#
# The same programs, revision and date give the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."

CARGO_DEB=3.8.0
CARGO_GENERATE_RPM=0.21.1

target=${CARGO_TARGET_DIR:-$PWD/target}
tools=$target/tools
out=${PACKAGES_OUT:-$target/packages}
revision=${PKG_REVISION:-1}
kinds=${PACKAGES_KINDS:-deb rpm}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 1767225600)}

case $revision in
'' | *[!0-9a-z.+~]*)
    echo "error: PKG_REVISION=$revision: expected digits, small letters and . + ~" >&2
    exit 2
    ;;
esac

tool() { # crate version
    if [ "$("$tools/bin/$1" --version 2>/dev/null | grep -o '[0-9.]*$')" != "$2" ]; then
        echo "installing $1 $2 into $tools"
        # Its own target folder: the workspace's profiles and lock are not the tool's. Optimising it more
        # would take longer than its work.
        CARGO_TARGET_DIR=$tools/build CARGO_PROFILE_RELEASE_OPT_LEVEL=1 cargo install --quiet --locked --root "$tools" "$1@$2"
        rm -rf "$tools/build"
    fi
}
tool cargo-deb $CARGO_DEB
tool cargo-generate-rpm $CARGO_GENERATE_RPM

for program in stokehold stokehold-agent stokehold-gateway stokehold-logshim stokehold-scheduler; do
    if [ ! -x "$target/release/$program" ]; then
        echo "error: $target/release/$program is not there: make build" >&2
        exit 1
    fi
done
shell=$target/release/shell
if [ ! -e "$shell/stokehold.1.gz" ] || [ "$target/release/stokehold" -nt "$shell/stokehold.1.gz" ]; then
    rm -rf "$shell"
    cargo run --quiet --release --locked -p stokehold-cli --example shell -- "$shell"
    gzip -9n "$shell"/*.1
fi

mkdir -p "$out"
umask 022
fast=()
if [ -n "${PACKAGES_FAST:-}" ]; then
    fast=(--fast)
fi
for folder in agent scheduler scheduler/cli; do
    # Names of functions stay in the programs: a backtrace from the field is worth their bytes.
    case " $kinds " in *" deb "*)
        "$tools/bin/cargo-deb" --quiet --no-build --no-strip --manifest-path "$folder/Cargo.toml" \
            --deb-revision "$revision" --output "$out/" "${fast[@]}"
        ;;
    esac
    case " $kinds " in *" rpm "*) ;; *) continue ;; esac
    "$tools/bin/cargo-generate-rpm" --package "$folder" --target-dir "$target" \
        --set-metadata "release = \"$revision\"" --source-date "$SOURCE_DATE_EPOCH" \
        --output "$out/"
done
ls -l "$out"
