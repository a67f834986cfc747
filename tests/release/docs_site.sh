#!/usr/bin/env bash
# Build build/docs/index.html: the pages of the repository, and the reference of all plugins and roles by antsibull-docs.
# Any warning fails: a page that nothing leads to, a link without a target, documentation that does not render.
set -euo pipefail
cd "$(dirname "$0")/../.."
requirements/add.sh docs
PATH=$PWD/.venv/bin:$PATH
source=$PWD/build/docs-source
rm -rf build/docs build/docs-doctrees "$source"
mkdir -p "$source/reference"
# The folders stand as in the repository, so that links from page to page hold, and those to files that pages name.
cp -r tests/release/site/* README.md CONTRIBUTING.md CHANGELOG.rst "$source"
cp -r --parents docs roles/*/README.md inventories/homelab tests/gates/rooms.py plugins/modules/campaign.py "$source"
chmod go-w "$source/reference"      # antsibull-docs insists
ANSIBLE_COLLECTIONS_PATH=$PWD/.venv/collections antsibull-docs collection --use-current --squash-hierarchy --fail-on-error \
  --cleanup everything --no-add-antsibull-docs-version --dest-dir "$source/reference" homelab.mixed_gpu
python -m sphinx --fail-on-warning --keep-going --quiet -b html -d build/docs-doctrees "$source" build/docs
echo "docs-site: build/docs/index.html, $(find build/docs -name '*.html' | wc -l) pages"
