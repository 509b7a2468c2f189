#!/bin/sh
# Builds labvc from Debian 12's packages alone: build.sh OUTPUT
# Nothing happens when OUTPUT is newer than every source file.
set -eu
out=${1:?usage: build.sh OUTPUT}
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")"
if [ -x "$out" ] && [ -z "$(find . -name '*.go' -newer "$out" -print -quit)" ] && [ ! build.sh -nt "$out" ]; then
    exit 0
fi
mkdir -p "$(dirname "$out")"
part=$out.$$.part
trap 'rm -f "$part"' EXIT
GO111MODULE=off GOFLAGS= GOPATH=/usr/share/gocode go build -o "$part" .
mv -f "$part" "$out"
