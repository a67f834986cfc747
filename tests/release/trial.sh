#!/usr/bin/env bash
# trial.sh VERSION: a release of the last commit in build/release-trial, through the tarball and Galaxy's importer.
# Nothing outside that folder changes.
set -euo pipefail
cd "$(dirname "$0")/../.."
trial=$PWD/build/release-trial/ansible_collections/homelab/mixed_gpu
rm -rf build/release-trial && mkdir -p "${trial%/*}"
git clone -q --no-hardlinks . "$trial"
python tests/release/prepare.py "${1:-}" "$trial"
cd "$trial"
git --no-pager diff --stat | tail -n 1
python -m ansible galaxy collection build --output-path build
tests/gates/importer.sh
python -c "import tarfile; names = tarfile.open('build/homelab-mixed_gpu-$1.tar.gz').getnames(); assert {'CHANGELOG.rst', 'MANIFEST.json'} <= set(names), names"
echo "release-trial: $trial/CHANGELOG.rst, $trial/build/homelab-mixed_gpu-$1.tar.gz"
