#!/usr/bin/env bash
# ansible-test sanity insists on a checkout at ansible_collections/<namespace>/<name>: give it a copy of the working tree.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${MIXED_GPU_CACHE:-$HOME/.cache/homelab-mixed-gpu}
root=$PWD/build/sanity/ansible_collections/homelab/mixed_gpu
rm -rf "$root" && mkdir -p "$root"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do [ -e "$f" ] && printf '%s\0' "$f"; done |
  tar --null -T - -c | tar -x -C "$root"
# ansible-test downloads get-pip from a host of its own; ensurepip does the same job and needs no network
export HOME=$cache/ansible-test
mkdir -p "$HOME/.ansible/test/cache"
for version in 23_1_2 24_2 25_2; do
  echo 'import ensurepip; ensurepip.bootstrap()' > "$HOME/.ansible/test/cache/get_pip_$version.py"
done
cd "$root"
git init -q && git add -A
version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
sanity() { ansible-test sanity --color no --python "$version" "$@"; }
if [ $# -gt 0 ]; then sanity "$@"; exit; fi
failed=0
sanity --skip-test pylint || failed=1
sanity --test pylint --exclude tests/ || failed=1   # ruff checks the tests; pylint would take twice as long for them
exit $failed
