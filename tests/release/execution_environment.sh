#!/usr/bin/env bash
# What ansible-builder makes of the built collection: what it reads of meta/execution-environment.yml, a build context
# with it, and whether pip and bindep know what is named there. No image is built and no container engine is needed.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$(requirements/own_venv.sh execution_environment)
work=build/execution-environment
rm -rf "$work" && mkdir -p "$work/collections"
tarballs=(build/homelab-mixed_gpu-*.tar.gz)
tarball=${tarballs[0]##*/}
cp "build/$tarball" "$work"
ANSIBLE_COLLECTIONS_PATH=$work/collections python -m ansible galaxy collection install --offline --force -p "$work/collections" "$work/$tarball" >"$work/install.log" 2>&1 ||
  { cat "$work/install.log"; exit 1; }

"$venv/bin/ansible-builder" introspect --write-pip "$work/requirements.txt" --write-bindep "$work/bindep.txt" "$work/collections"
cmp <(grep -v '^#' meta/ee-requirements.txt | sort) <(sed 's/ *#.*//; /^$/d' "$work/requirements.txt" | sort)
cmp <(grep -v '^#' meta/ee-bindep.txt | sort) <(sed 's/ *#.*//; /^$/d' "$work/bindep.txt" | sort)
python -m pip install -q --disable-pip-version-check --dry-run --ignore-installed -r meta/ee-requirements.txt
"$venv/bin/bindep" --file meta/ee-bindep.txt --list_all newline

cat > "$work/execution-environment.yml" <<DEFINITION
---
version: 3
dependencies:
  ansible_core: {package_pip: "ansible-core>=2.19"}
  ansible_runner: {package_pip: ansible-runner}
  python_interpreter: {package_system: python3}
  galaxy:
    collections: [{name: $tarball, type: file}]
additional_build_files: [{src: $tarball, dest: .}]
DEFINITION
"$venv/bin/ansible-builder" create --file "$work/execution-environment.yml" --context "$work/context" >"$work/create.log" 2>&1 ||
  { cat "$work/create.log"; exit 1; }
grep -q "$tarball" "$work/context/_build/requirements.yml"
[ -s "$work/context/Containerfile" ] && [ -s "$work/context/_build/$tarball" ]
echo "execution-environment: ansible-builder reads the collection's dependencies and makes a build context of it"
