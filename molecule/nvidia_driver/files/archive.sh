#!/usr/bin/env bash
# Make packages that stand in for NVIDIA's driver: real names, sources, versions, dependencies and DKMS, and next to nothing in them.
#
#   archive.sh first     /srv/archive: driver 580.95.05, kernel 6.8.0-10, control 1
#   archive.sh second    and driver 580.105.08, kernel 6.8.0-20, control 2
#   archive.sh lost      only the second: as archives do, the first is dropped
#   archive.sh nvidia    /srv/nvidia: signed, with the names of NVIDIA's repository for Debian 13, driver 595.71.05
#   archive.sh forged    /srv/nvidia: signed by another key, which is in the key file beside the right key
#   archive.sh signed    /srv/nvidia: signed by the right key again
set -euo pipefail

# package VERSION SOURCE NAME [DEPENDS] ; the payload is what lies in $tree
package() {
  local version=$1 source=$2 name=$3 depends=${4:-}
  mkdir -p "$tree/DEBIAN" "$tree/usr/share/doc/$name"
  {
    printf 'Package: %s\nSource: %s\nVersion: %s\nArchitecture: amd64\n' "$name" "$source" "$version"
    printf 'Maintainer: Nobody <nobody@example.org>\nDescription: stand-in\n'
    [ -z "$depends" ] || printf 'Depends: %s\n' "$depends"
    [ -z "${conflicts:-}" ] || printf 'Conflicts: %s\nReplaces: %s\n' "$conflicts" "$conflicts"
  } > "$tree/DEBIAN/control"
  dpkg-deb --root-owner-group --build "$tree" "$archive" >/dev/null
  rm -rf "$tree"
}

# dkms VERSION SOURCE NAME [DEPENDS]: a module that says its version, made by the real dkms for every kernel
dkms_package() {
  local version=$1 driver=${1%%-*} source
  source=$tree/usr/src/nvidia-$driver
  mkdir -p "$source" "$tree/DEBIAN"
  cat > "$source/dkms.conf" <<CONF
PACKAGE_NAME="nvidia"
PACKAGE_VERSION="$driver"
BUILT_MODULE_NAME[0]="nvidia"
DEST_MODULE_LOCATION[0]="/updates/dkms"
MAKE[0]="sh build.sh \${kernelver}"
CLEAN="true"
AUTOINSTALL="yes"
CONF
  cat > "$source/build.sh" <<'BUILD'
if grep -qsx "$1" /etc/stand-in-does-not-compile; then echo "error: too few arguments to function"; exit 1; fi
as -o nvidia.ko nvidia.s
BUILD
  printf '.section .modinfo,"a"\n.asciz "version=%s"\n' "$driver" > "$source/nvidia.s"
  cat > "$tree/DEBIAN/postinst" <<POST
#!/bin/sh
# as the real packages do: a kernel for which it does not compile does not stop the installation (Ubuntu's dkms only reports it)
dkms status nvidia/$driver | grep -q added || dkms add -m nvidia -v $driver || true
for kernel in /boot/vmlinuz-*; do dkms install -m nvidia -v $driver -k \${kernel#/boot/vmlinuz-} || true; done
POST
  printf '#!/bin/sh\ndkms remove -m nvidia -v %s --all || true\n' "$driver" > "$tree/DEBIAN/prerm"
  chmod 755 "$tree/DEBIAN/postinst" "$tree/DEBIAN/prerm"
  package "$@"
}

ubuntu_driver() {
  local version=$1 branch=${1%%.*} source=nvidia-graphics-drivers-${1%%.*}-server
  package "$version" "$source" "libnvidia-compute-$branch-server"
  dkms_package "$version" "$source" "nvidia-dkms-$branch-server-open" dkms
  # at least, not exactly: only a pin keeps what a metapackage depends on
  package "$version" "$source" "nvidia-headless-$branch-server-open" \
    "nvidia-dkms-$branch-server-open (>= $version), libnvidia-compute-$branch-server (>= $version)"
  package "$version" "$source" "nvidia-utils-$branch-server" "libnvidia-compute-$branch-server (= $version)"
  mkdir -p "$tree/usr/lib/systemd/system" "$tree/usr/bin"
  printf '#!/bin/sh\nexec sleep infinity\n' > "$tree/usr/bin/nvidia-persistenced"
  chmod 755 "$tree/usr/bin/nvidia-persistenced"
  cat > "$tree/usr/lib/systemd/system/nvidia-persistenced.service" <<'UNIT'
[Unit]
Description=NVIDIA Persistence Daemon
StopWhenUnneeded=true
[Service]
ExecStart=/usr/bin/nvidia-persistenced --user nvidia-persistenced --no-persistence-mode --verbose
UNIT
  package "$version" "$source" "nvidia-compute-utils-$branch-server" "libnvidia-compute-$branch-server (= $version)"
}

kernel() {
  local release=$1
  mkdir -p "$tree/boot" "$tree/lib/modules/$release/kernel"
  # a module of its own: dkms takes a kernel without any for one that is being removed, and its modules.dep away
  printf '.section .modinfo,"a"\n.asciz "license=GPL"\n' | as -o "$tree/lib/modules/$release/kernel/own.ko" -
  echo kernel > "$tree/boot/vmlinuz-$release"
  printf 'CONFIG_MODULES=y\nCONFIG_RD_GZIP=y\n' > "$tree/boot/config-$release"
  touch "$tree/lib/modules/$release/modules."{order,builtin,builtin.modinfo}
  mkdir -p "$tree/DEBIAN"
  printf '#!/bin/sh\ndepmod %s\nupdate-initramfs -c -k %s >/dev/null 2>&1\n' "$release" "$release" > "$tree/DEBIAN/postinst"
  chmod 755 "$tree/DEBIAN/postinst"
  package "$release" linux "linux-image-$release"
  mkdir -p "$tree/lib/modules/$release" "$tree/usr/src/linux-headers-$release/include/config"
  ln -s "/usr/src/linux-headers-$release" "$tree/lib/modules/$release/build"
  echo 'all:' > "$tree/usr/src/linux-headers-$release/Makefile"
  echo CONFIG_MODULES=y > "$tree/usr/src/linux-headers-$release/.config"
  package "$release" linux "linux-headers-$release"
  package "$release" linux-meta linux-image-generic "linux-image-$release"
  package "$release" linux-meta linux-headers-generic "linux-headers-$release"
}

first() {
  kernel 6.8.0-10-generic
  ubuntu_driver 580.95.05-0ubuntu0.24.04.1
  package 1 control control
  # the name of one branch, and what it has become
  package 610.43.02-0ubuntu0.24.04.1 nvidia-graphics-drivers-610-server nvidia-headless-595-server-open
  package 610.43.02-0ubuntu0.24.04.1 nvidia-graphics-drivers-610-server nvidia-utils-595-server
  package 610.43.02-0ubuntu0.24.04.1 nvidia-graphics-drivers-610-server nvidia-compute-utils-595-server
  # a driver that somebody installed for a desktop
  dkms_package 580.95.05-0ubuntu0.24.04.2 nvidia-graphics-drivers-580 nvidia-dkms-580-open dkms
}

second() {
  kernel 6.8.0-20-generic
  ubuntu_driver 580.105.08-0ubuntu0.24.04.1
  package 2 control control
}

# Origin and label as in the image's settings of unattended-upgrades
publish() {
  cd "$archive"
  apt-ftparchive packages . > Packages
  apt-ftparchive -o APT::FTPArchive::Release::Origin=Debian -o APT::FTPArchive::Release::Label=Debian \
    -o APT::FTPArchive::Release::Codename=noble -o APT::FTPArchive::Release::Suite=noble release . > /tmp/Release
  mv /tmp/Release Release
}

key() { gpg -q --batch --passphrase '' --quick-gen-key "$1@example.org" rsa2048 sign never 2>/dev/null; }
sign() {
  cd /srv/nvidia
  gpg -q --batch --yes --local-user "$1@example.org" --clearsign -o InRelease Release
  gpg -q --batch --yes --armor --export > key.asc
}

archive=/srv/archive tree=$(mktemp -d)/tree
export GNUPGHOME=/root/gnupg
mkdir -p "$archive"
case $1 in
  first) first ;;
  second) second ;;
  lost) rm -f "$archive"/*_580.95.05-0ubuntu0.24.04.1_* ;;
  nvidia)
    archive=/srv/nvidia
    mkdir -p "$archive"
    package 595.71.05-1 nvidia-open nvidia-driver-cuda "nvidia-kernel-open-dkms (= 595.71.05-1)"
    conflicts="nvidia-dkms-580-server-open" dkms_package 595.71.05-1 nvidia-open nvidia-kernel-open-dkms dkms
    conflicts="nvidia-compute-utils-580-server" package 595.71.05-1 nvidia-persistenced nvidia-persistenced
    install -d -m 700 "$GNUPGHOME"
    key stand-in
    publish
    sign stand-in
    gpg --list-keys --with-colons | sed -n 's/^fpr:*\([0-9A-F]*\):$/\1/p' | head -n 1 > fingerprint
    exit 0 ;;
  forged) key forger; sign forger; exit 0 ;;
  signed) sign stand-in; exit 0 ;;
  *) exit 2 ;;
esac
publish
