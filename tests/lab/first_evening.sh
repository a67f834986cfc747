#!/usr/bin/env bash
# Do what docs/first_evening.md says on a fresh test host, with the built tarball.
#   first_evening.sh         from pipx to an answered chat; the host is removed where that went well
#   first_evening.sh clean   remove the host
set -euo pipefail
cd "$(dirname "$0")/../.."
export LAB_HOST=${LAB_HOST:-mixed-gpu-first-evening}
lab=tests/lab/lab.sh
[ "${1:-}" = clean ] || {
  began=$SECONDS
  "$lab" up
  "$lab" run python tests/lab/first_evening.py build/homelab-mixed_gpu-*.tar.gz || {
    echo "first-evening | FAILED: host $LAB_HOST stays for a look; tests/lab/first_evening.sh clean removes it"
    exit 1
  }
  printf 'first-evening | took %s s\n' $((SECONDS - began))
}
exec "$lab" destroy "$LAB_HOST"
