#!/usr/bin/env bash
# Galaxy's own importer, in its own environment, on the tarball that a user would install. Any error or warning fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$(requirements/own_venv.sh galaxy_importer)
log=build/galaxy-importer.log
tarballs=(build/homelab-mixed_gpu-*.tar.gz)
PATH=$venv/bin:$PATH GALAXY_IMPORTER_CONFIG=$PWD/tests/gates/galaxy-importer.cfg \
  python -m galaxy_importer.main "${tarballs[0]}" >"$log" 2>&1 || { tail -n 40 "$log"; exit 1; }
rm -f importer_result.json
if grep -E '^(ERROR|WARNING)' "$log"; then exit 1; fi
echo "galaxy-importer: no findings"
