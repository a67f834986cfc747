#!/usr/bin/env bash
# Galaxy's own importer, in its own environment, on the tarball that a user would install. Any error or warning fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${MIXED_GPU_CACHE:-$HOME/.cache/homelab-mixed-gpu}/galaxy-importer-$(sha256sum requirements/galaxy_importer.txt | cut -c1-12)-$(python -c 'import sys; print("py%d%d" % sys.version_info[:2])')
if [ ! -e "$venv/ready" ]; then
  echo "importer | installing galaxy-importer (once)"
  python -m venv --clear "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check --require-hashes -r requirements/galaxy_importer.txt
  touch "$venv/ready"
fi
log=build/galaxy-importer.log
tarballs=(build/homelab-mixed_gpu-*.tar.gz)
PATH=$venv/bin:$PATH GALAXY_IMPORTER_CONFIG=$PWD/tests/gates/galaxy-importer.cfg \
  python -m galaxy_importer.main "${tarballs[0]}" >"$log" 2>&1 || { tail -n 40 "$log"; exit 1; }
rm -f importer_result.json
if grep -E '^(ERROR|WARNING)' "$log"; then exit 1; fi
echo "galaxy-importer: no findings"
