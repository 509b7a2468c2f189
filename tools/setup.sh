#!/usr/bin/env bash
# Prepare this machine: system packages (only those that are missing) and a virtual environment.
#   tools/setup.sh demo   what `make demo` needs
#   tools/setup.sh test   the same, and what the tests need beside it
#   tools/setup.sh bench  what `make test` needs, and the peers that `make bench` measures beside vmhaul
# Running it again costs nothing when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."
stage="${1:-demo}"

# Its name follows its version: Debian 12 has one, 13 the next.
libnfs=libnfs13
! grep -qs '^VERSION_ID="13"' /etc/os-release || libnfs=libnfs14
demo_packages=(golang-go golang-github-vmware-govmomi-dev e2fsprogs xfsprogs lvm2 gdisk mount util-linux
  nfs-ganesha nfs-ganesha-vfs rpcbind iproute2 "$libnfs")
test_packages=("${demo_packages[@]}" redis-server postgresql qemu-utils chromium fonts-dejavu-core zstd
  ceph-mon ceph-osd ceph-mgr radosgw qemu-system-x86
  vmfs-tools vmfs6-tools btrfs-progs tgt qemu-block-extra openssh-server nbdkit libnbd0 gcc libc6-dev)
bench_packages=("${test_packages[@]}" restic borgbackup)
azurite="azurite@3.35.0"
case "$stage" in
  demo) packages=("${demo_packages[@]}") ;;
  test) packages=("${test_packages[@]}") ;;
  bench) packages=("${bench_packages[@]}") ;;
  *) echo "usage: tools/setup.sh demo|test|bench" >&2; exit 2 ;;
esac

# Debian's Node.js comes without npm; other builds of it have npm inside.
[ "$stage" = demo ] || command -v npm >/dev/null || packages+=(npm)

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }

missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
else
  echo "setup: this machine has no dpkg; install by hand what corresponds to: ${packages[*]}" >&2
fi

python=""
for candidate in python3.13 python3.12 python3.11 python3; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    python="$candidate"; break
  fi
done
if [ -z "$python" ]; then
  missing+=(python3 python3-venv); python=python3
elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  missing+=(python3-venv)
fi

if [ "${#missing[@]}" -gt 0 ]; then
  say "installing system packages: ${missing[*]}"
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "setup: run as root (or install sudo): apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get -q update >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${missing[@]}" >&2
fi

# The stamp names what the environment was made from, so that a changed requirement is installed.
stamp="$(cat pyproject.toml lab/pyproject.toml tools/setup.sh | sha256sum | cut -d' ' -f1) $("$python" --version)"
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/.made-from 2>/dev/null)" != "$stamp" ]; then
  say "making the virtual environment .venv"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,san]' -e ./lab >&2
  echo "$stamp" > .venv/.made-from
fi

if [ "$stage" != demo ] && [ "$(cat .venv/azurite/.made-from 2>/dev/null)" != "$azurite" ]; then
  say "installing $azurite, the emulator of Azure Blob Storage"
  command -v npm >/dev/null || { echo "setup: npm is missing; install Node.js with npm" >&2; exit 1; }
  npm install --silent --no-audit --no-fund --no-save --prefix .venv/azurite "$azurite" >&2
  echo "$azurite" > .venv/azurite/.made-from
fi

# A stock kernel for guests that tests start in QEMU; taken out of its package, never installed on this machine.
guest_kernel=.venv/guest-kernel
kernel_package() {
  apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1
}
if [ "$stage" != demo ] && [ ! -f "$guest_kernel/vmlinuz" ]; then
  package="$(kernel_package)"
  [ -n "$package" ] || { apt-get -q update >&2; package="$(kernel_package)"; }
  say "fetching $package for guests in QEMU"
  scratch="$(mktemp -d)"
  trap 'rm -rf "$scratch"' EXIT
  chmod 777 "$scratch"  # apt fetches as a user of its own
  (cd "$scratch" && apt-get -q download "$package" >&2 && dpkg-deb -x "$package"_*.deb tree)
  mkdir -p "$guest_kernel"
  for module in scsi_common scsi_mod sd_mod vmw_pvscsi; do
    find "$scratch/tree/" -name "$module.ko" -exec cp {} "$guest_kernel/" \;
    find "$scratch/tree/" -name "$module.ko.xz" -exec sh -c 'xz -dc "$1" > "$2"' - {} "$guest_kernel/$module.ko" \;
  done
  cp "$scratch"/tree/boot/vmlinuz-* "$guest_kernel/vmlinuz"
fi

# What checks alert rules; taken out of its package, so that no Prometheus is installed and started on this machine.
if [ "$stage" != demo ] && [ ! -x .venv/prometheus/promtool ]; then
  say "fetching promtool"
  (
    beside="$(mktemp -d)"
    trap 'rm -rf "$beside"' EXIT
    chmod 777 "$beside"  # apt fetches as a user of its own
    cd "$beside"
    apt-get -q download prometheus >&2 || { apt-get -q update >&2; apt-get -q download prometheus >&2; }
    dpkg-deb -x prometheus_*.deb tree
    cd - >/dev/null
    mkdir -p .venv/prometheus
    cp "$beside/tree/usr/bin/promtool" .venv/prometheus/promtool
  )
fi

# nbdkit's plugin for VDDK: Debian 12 has none, and the one of Debian 13 (contrib) works with its nbdkit. Taken out of its
# package; this machine's sources and lists stay as they are.
vddk_plugin=.venv/nbdkit-vddk
if [ "$stage" != demo ] && [ ! -f "$vddk_plugin/nbdkit-vddk-plugin.so" ]; then
  say "fetching nbdkit's plugin for VDDK"
  mkdir -p "$vddk_plugin"
  (
    beside="$(mktemp -d)"
    trap 'rm -rf "$beside"' EXIT
    chmod 777 "$beside"
    mkdir -p "$beside/lists/partial" "$beside/cache/archives/partial"
    mirror="$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)"
    echo "deb $mirror trixie contrib" > "$beside/sources.list"
    side=(-q -o "Dir::Etc::sourcelist=$beside/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$beside/lists"
      -o "Dir::Cache=$beside/cache")
    apt-get "${side[@]}" update >&2
    cd "$beside"
    apt-get "${side[@]}" download nbdkit-plugin-vddk >&2
    dpkg-deb -x nbdkit-plugin-vddk_*.deb tree
    cd - >/dev/null
    find "$beside/tree" -name nbdkit-vddk-plugin.so -exec cp {} "$vddk_plugin/" \;
  )
fi
