#!/usr/bin/env bash
# What stages with containers need: a Docker engine's programs, and Docker's compose and build plugins in .venv/docker.
# The engine that packages install is neither started nor enabled; stages start one of their own.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }

missing=()
command -v dockerd >/dev/null || missing+=(docker.io)
command -v debootstrap >/dev/null || missing+=(debootstrap)
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "stages: install by hand, or run as root on Debian: ${missing[*]}" >&2
    exit 77
  fi
  say "installing system packages: ${missing[*]}"
  apt-get -q update >&2
  DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${missing[@]}" >&2
fi

# Debian 12 has no compose v2 and no buildx; Debian 13's need nothing but libc. Taken out of their packages; this
# machine's sources and lists stay as they are. What Docker has installed itself is used as it is.
plugins="$PWD/.venv/docker/cli-plugins"
for plugin in docker-compose docker-buildx; do
  [ -x "$plugins/$plugin" ] && continue
  mkdir -p "$plugins"
  for installed in /usr/local/lib/docker/cli-plugins /usr/lib/docker/cli-plugins /usr/libexec/docker/cli-plugins \
    /usr/local/libexec/docker/cli-plugins; do
    [ -x "$installed/$plugin" ] && ln -sf "$installed/$plugin" "$plugins/$plugin" && break
  done
  [ -x "$plugins/$plugin" ] && continue
  say "fetching $plugin"
  (
    beside="$(mktemp -d)"
    trap 'rm -rf "$beside"' EXIT
    chmod 777 "$beside"  # apt fetches as a user of its own
    mkdir -p "$beside/lists/partial" "$beside/cache/archives/partial"
    mirror="$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep debian | grep -v security | head -n 1)"
    echo "deb $mirror trixie main" > "$beside/sources.list"
    side=(-q -o "Dir::Etc::sourcelist=$beside/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$beside/lists"
      -o "Dir::Cache=$beside/cache")
    apt-get "${side[@]}" update >&2
    cd "$beside"
    apt-get "${side[@]}" download "$plugin" >&2
    dpkg-deb -x "$plugin"_*.deb tree
    cp "$beside/tree/usr/libexec/docker/cli-plugins/$plugin" "$plugins/$plugin"
  )
done
