#!/usr/bin/env bash
# Install Debian 13's real driver packages with the role nvidia_driver on a test host, including the DKMS build for the
# distribution's current kernel. 10 to 20 minutes, most of them compiling. Needs a mirror with contrib and non-free.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ANSIBLE_CONFIG=$PWD/ansible.cfg ANSIBLE_COLLECTIONS_PATH=$PWD/.venv/collections ANSIBLE_HOME=$PWD/.ansible
export LAB_HOST=${LAB_HOST:-mixed-gpu-driver-dkms} NO_COLOR=1 ANSIBLE_NOCOLOR=1
log=$(mktemp /tmp/driver-dkms.XXXXXX)
trap 'rm -f "$log"; tests/lab/lab.sh destroy "$LAB_HOST"' EXIT

say() { printf 'driver-dkms | %s\n' "$*"; }
die() { tail -n 60 "$log"; say "$*"; exit 1; }
inside() { tests/lab/lab.sh run "${LAB_ENGINE:-podman}" exec "$LAB_HOST" "$@"; }
role() {
  tests/lab/lab.sh run ansible-playbook -i molecule/nvidia_driver/inventory/hosts.yml -e '{"__nvidia_driver_stand_in": true}' \
    -e '{"nvidia_driver_branch": "550"}' "$@" molecule/nvidia_driver/converge.yml > "$log" 2>&1
}

tests/lab/lab.sh destroy "$LAB_HOST"
tests/lab/lab.sh create "$LAB_HOST"
# shellcheck disable=SC2016  # the host's variables
inside sh -c '. /etc/os-release; [ "$ID $VERSION_ID" = "debian 13" ]' || { say "this suite needs a Debian 13 test host (LAB_SUITE=trixie)"; exit 1; }
inside sed -i 's/ main$/ main contrib non-free non-free-firmware/' /etc/apt/sources.list
say "installing Debian's kernel"
inside sh -c 'apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends linux-image-amd64' > "$log" 2>&1 ||
  die "the kernel could not be installed"
kernel=$(inside sh -c 'ls /boot/vmlinuz-* | sort -V | tail -n 1 | cut -d- -f2-')

say "open modules, which do not compile for $kernel: the role must refuse them at once"
began=$SECONDS
if role; then die "the role did not refuse"; fi
tr -s '[:space:]' ' ' < "$log" | grep -q "does not compile for kernel $kernel" || die "the refusal does not say why"
say "refused in $((SECONDS - began)) s"

say "proprietary modules"
began=$SECONDS
role -e '{"nvidia_driver_open_modules": false}' || die "the role failed"
say "installed in $((SECONDS - began)) s, DKMS build included"
version=$(inside modinfo -k "$kernel" -F version nvidia-current) || die "no module for $kernel"
inside dkms status | tee -a "$log"
inside dkms status -k "$kernel" | grep -q "nvidia-current/$version, $kernel, x86_64: installed" || die "dkms does not know the module"
inside apt-mark showhold | grep -qx nvidia-kernel-dkms || die "the driver is not held"
inside test -s "/boot/initrd.img-$kernel" || die "no initramfs"

say "second run: must change nothing"
role -e '{"nvidia_driver_open_modules": false}' || die "the second run failed"
grep -q 'changed=0 ' "$log" || die "the second run changed something"
say "driver $version: module for $kernel built, held, and left alone by a second run"
