#!/usr/bin/env bash
# Check out the commit that benchmarks compare this checkout with, below build/bench/before, and print that folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
commit=${BEFORE:-9e3336a}   # the last commit before the rooms, the campaigns and the short task files
folder=$PWD/build/bench/before
git cat-file -e "$commit^{commit}" 2>/dev/null || { echo "bench: this clone lacks commit $commit: git fetch --unshallow" >&2; exit 1; }
if [ -e "$folder/.git" ]; then git -C "$folder" checkout -q --detach "$commit"; else git worktree add -q --force --detach "$folder" "$commit"; fi
collections=$folder/.venv/collections/ansible_collections
mkdir -p "$collections/homelab"
ln -sfn "$folder" "$collections/homelab/mixed_gpu"
ln -sfn "$PWD/.venv/collections/ansible_collections/community" "$collections/community"
echo "$folder"
