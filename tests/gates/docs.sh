#!/usr/bin/env bash
# Documentation of plugins and roles renders and all references resolve; changelog fragments are valid.
set -euo pipefail
cd "$(dirname "$0")/../../.venv/collections/ansible_collections/homelab/mixed_gpu"
antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck --validate-collection-refs self .
antsibull-changelog lint
