#!/usr/bin/env bash
# Test hosts with a real systemd, on any Debian or Ubuntu machine, without an image registry.
#
#   lab.sh up                            start the lab (private mount and network namespaces) and build the image
#   lab.sh create NAME                   create and boot a host; again on a running host: do nothing
#   lab.sh forward NAME PORT HOST_PORT   127.0.0.1:PORT of this machine reaches 127.0.0.1:HOST_PORT inside the host
#   lab.sh run CMD...                    run a command inside the lab, where `podman` sees the hosts
#   lab.sh destroy NAME                  remove one host and its forwards
#   lab.sh hosts                         list the hosts, one a line
#   lab.sh down                          remove the lab and all hosts; caches stay
#
# Everything lives in namespaces of its own: the machine's netfilter tables, ip_forward and systemd are never touched.
# Environment: LAB_DIR, LAB_SUITE, LAB_MIRROR; LAB_ENGINE=docker|podman with LAB_IMAGE=<an image with systemd> uses an
# ordinary container engine instead of the private lab.
# shellcheck disable=SC2016  # scripts for other shells, and apt's own variables, stand in single quotes
set -euo pipefail

# What starts here stays: it must not keep a file of the caller open, such as the lock of `flock FILE make demo`.
for fd in "/proc/$$/fd"/*; do
  fd=${fd##*/}
  case $fd in 0|1|2|255) ;; *) exec {fd}>&- ;; esac
done

CACHE=${MIXED_GPU_CACHE:-$HOME/.cache/homelab-mixed-gpu}
LAB_DIR=${LAB_DIR:-$CACHE/lab}
ENGINE=${LAB_ENGINE:-podman}
. /etc/os-release
if [ "$ID" = ubuntu ]; then
  SUITE=${LAB_SUITE:-noble} COMPONENTS="main universe" ARCHIVE=ubuntu
else
  SUITE=${LAB_SUITE:-trixie} COMPONENTS=main ARCHIVE=debian
fi
PACKAGES_IN_IMAGE=systemd,systemd-sysv,dbus,python3,python3-apt,sudo,iproute2,procps,ca-certificates,curl
DPKG_OPTION=force-unsafe-io   # hosts are made anew: their packages need not survive a power cut
mkdir -p "$LAB_DIR"/{networks,forwards}
LAB_DIR=$(cd "$LAB_DIR" && pwd)

private() { [ -z "${LAB_ENGINE:-}" ]; }
say() { printf 'lab | %s\n' "$*"; }
die() { printf 'lab: %s\n' "$*" >&2; exit 1; }

# The connection plugin of community.docker works with podman as well and sends a module in one step (pipelining),
# unlike that of containers.podman. It looks for a program named docker. Whole or not at all: others may be using it.
link_engine() {  # $1: folder for the path, $2: program that is found there as docker
  [ "$(readlink "$1/docker")" = "$2" ] ||
    { mkdir -p "$1" && ln -sfn "$2" "$1/docker.$$" && mv -T "$1/docker.$$" "$1/docker"; }
  export PATH=$1:$PATH
}
if private; then
  # a copy, because the lab outlives the checkout that made it
  if ! cmp -s "${BASH_SOURCE[0]%/*}/podman" "$LAB_DIR/bin/podman"; then
    mkdir -p "$LAB_DIR/bin"
    cp "${BASH_SOURCE[0]%/*}/podman" "$LAB_DIR/bin/podman.$$" && mv -T "$LAB_DIR/bin/podman.$$" "$LAB_DIR/bin/podman"
  fi
  link_engine "$LAB_DIR/bin" podman
elif [ "$ENGINE" = podman ]; then
  link_engine "$LAB_DIR/bin-engine" "$(command -v podman || echo /usr/bin/podman)"
fi

if private; then
  export CONTAINERS_CONF=$LAB_DIR/containers.conf CONTAINERS_STORAGE_CONF=$LAB_DIR/storage.conf
  [ "$(id -u)" = 0 ] || die "the private lab needs root (mount and network namespaces): run it through sudo, or set LAB_ENGINE"
fi

install_packages() {
  local p missing=() want=(podman runc netavark aardvark-dns slirp4netns iptables mmdebstrap iproute2 util-linux)
  [ "$ARCHIVE" = debian ] && want+=(debian-archive-keyring) || want+=(ubuntu-keyring)
  for p in "${want[@]}"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} = 0 ] && return
  say "installing ${missing[*]}"
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -qy -o DPkg::Lock::Timeout=600 --no-install-recommends "${missing[@]}"
}

write_config() {
  local nofile nproc
  nofile=$(ulimit -Hn) nproc=$(ulimit -Hu)
  [ "$nofile" = unlimited ] && nofile=1048576
  # podman lowers its own nproc limit to 32768; without CAP_SYS_RESOURCE a container cannot raise it again
  if [ "$nproc" = unlimited ] || [ "$nproc" -gt 32768 ]; then nproc=32768; fi
  # whole or not at all: another command of the lab may be reading them
  cat > "$CONTAINERS_CONF.new" <<CONF
[containers]
pids_limit = 0
default_ulimits = ["nofile=$nofile:$nofile", "nproc=$nproc:$nproc"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$LAB_DIR/run/libpod"
[network]
network_backend = "netavark"
network_config_dir = "$LAB_DIR/networks"
CONF
  mv "$CONTAINERS_CONF.new" "$CONTAINERS_CONF"
  cat > "$CONTAINERS_STORAGE_CONF.new" <<CONF
[storage]
driver = "overlay"
graphroot = "$LAB_DIR/storage"
runroot = "$LAB_DIR/run"
CONF
  mv "$CONTAINERS_STORAGE_CONF.new" "$CONTAINERS_STORAGE_CONF"
}

# $1: file with a process id, $2: what its command line must contain, since after a reboot the id may be another
# program's
runs() { [ -s "$1" ] && tr '\0' ' ' 2>/dev/null < "/proc/$(cat "$1")/cmdline" | grep -q -- "$2"; }
alive() { runs "$LAB_DIR/pid" 'sleep infinity'; }

# $1: file that must become non-empty within a minute
await_file() {
  local _
  for _ in $(seq 600); do [ -s "$1" ] && return 0; sleep 0.1; done
  die "$1 did not appear; see $LAB_DIR/*.log"
}

start_namespaces() {
  alive && return
  # A lab that died with its machine leaves run-time state that describes containers long gone.
  rm -rf "$LAB_DIR"/{pid,pid.tmp,ready,run}
  setsid unshare --mount --net --propagation private bash -c '
    set -e
    [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || mount -t cgroup2 none /sys/fs/cgroup
    cp /sys/fs/cgroup/cgroup.subtree_control "$1/subtree_control.before"
    echo nameserver 10.0.2.3 > "$1/resolv.conf"
    mount --bind "$1/resolv.conf" "$(readlink -f /etc/resolv.conf)"
    mkdir -p /run/containers/networks && mount -t tmpfs none /run/containers/networks
    ip link set lo up
    echo 1 > /proc/sys/net/ipv4/ip_forward            # of this network namespace only
    echo $$ > "$1/pid.tmp" && mv "$1/pid.tmp" "$1/pid"
    exec sleep infinity' lab "$LAB_DIR" </dev/null >"$LAB_DIR/namespaces.log" 2>&1 9>&- &
  await_file "$LAB_DIR/pid"
  setsid slirp4netns --configure --mtu=65520 --disable-host-loopback --ready-fd=3 "$(cat "$LAB_DIR/pid")" tap0 \
    3>"$LAB_DIR/ready" </dev/null >"$LAB_DIR/slirp4netns.log" 2>&1 9>&- &
  echo $! > "$LAB_DIR/slirp4netns.pid"
  await_file "$LAB_DIR/ready"
}

inside() {  # run a command where the container engine is
  if private; then
    nsenter -t "$(cat "$LAB_DIR/pid")" --mount --net --wd="$PWD" -- "$@"
  else
    "$@"
  fi
}

image_name() {
  private || { printf '%s' "${LAB_IMAGE:?LAB_ENGINE needs LAB_IMAGE, an image whose init is systemd}"; return; }
  printf 'localhost/mixed-gpu-%s:%s' "$SUITE" \
    "$(printf '%s\n' "$SUITE" "$PACKAGES_IN_IMAGE" "$DPKG_OPTION" "$(date +%Y-%m)" | sha256sum | cut -c1-12)"
}

build_image() {
  private || return 0
  local image tar mirror security
  image=$(image_name)
  inside podman image exists "$image" && return
  tar=$CACHE/rootfs-$SUITE-${image##*:}.tar
  if [ ! -f "$tar" ]; then
    mirror=${LAB_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 "/$ARCHIVE/\?\$")} \
      || die "no mirror of $ARCHIVE in this machine's apt sources: set LAB_MIRROR"
    mirror=${mirror%/}
    if [ "$ARCHIVE" = debian ]; then security=$mirror-security; else security=$mirror; fi
    say "building the $SUITE image (once a month, about a minute)"
    mmdebstrap --variant=minbase --include="$PACKAGES_IN_IMAGE" --dpkgopt="$DPKG_OPTION" --aptopt='Acquire::Languages "none"' \
      "$SUITE" "${tar%.tar}.part.tar" \
      "deb $mirror $SUITE $COMPONENTS" "deb $mirror $SUITE-updates $COMPONENTS" "deb $security $SUITE-security $COMPONENTS"
    mv "${tar%.tar}.part.tar" "$tar"
  fi
  say "importing $image"
  inside podman import -q -c 'ENV container=podman' -c 'STOPSIGNAL SIGRTMIN+3' -c 'CMD ["/lib/systemd/systemd"]' "$tar" "$image"
}

# Several commands may want the lab at the same time: the first makes it. What stays does not keep the lock.
up() {
  {
    flock 9
    if private; then install_packages; write_config; start_namespaces; fi
    build_image
    inside "$ENGINE" network inspect "${LAB_NETWORK:-mixed-gpu}" >/dev/null 2>&1 ||
      inside "$ENGINE" network create "${LAB_NETWORK:-mixed-gpu}" >/dev/null
  } 9>"$LAB_DIR/lock"
}

state() { inside "$ENGINE" inspect -f '{{.State.Status}}' "$1" 2>/dev/null || echo absent; }

# One cache for all hosts but apt's, which locks its directory.
create() {
  local name=$1 dir options=() prepare="mount --make-rshared /" _   # LoadCredential= needs shared mounts
  up
  case $(state "$name") in
    running) return ;;
    absent)
      for dir in ccache pip downloads "apt/$SUITE-$name"; do mkdir -p "$CACHE/$dir"; done
      options=(--hostname "$name" --network "${LAB_NETWORK:-mixed-gpu}" --cap-add=SYS_ADMIN --cap-add=SYS_NICE
        --security-opt=apparmor=unconfined
        -v "$CACHE/ccache:/var/cache/ccache" -v "$CACHE/pip:/root/.cache/pip"
        -v "$CACHE/downloads:/var/cache/mixed_gpu" -v "$CACHE/apt/$SUITE-$name:/var/cache/apt/archives")
      if [ "$ENGINE" = podman ]; then
        options+=(--systemd=always)
      else
        options+=(--cgroupns=private --tmpfs=/run --tmpfs=/run/lock --env=container=docker --stop-signal=SIGRTMIN+3)
        prepare="$prepare; mount -o remount,rw /sys/fs/cgroup"
      fi
      say "creating $name"
      inside "$ENGINE" run -d --name "$name" "${options[@]}" "$(image_name)" sh -c "$prepare; exec /lib/systemd/systemd" >/dev/null
      # certificate authorities that this machine trusts beyond the usual ones (an intercepting proxy, say)
      if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
        tar -C /usr/local/share/ca-certificates -c . |
          inside "$ENGINE" exec -i "$name" tar -C /usr/local/share/ca-certificates --no-same-owner -x
        inside "$ENGINE" exec "$name" update-ca-certificates >/dev/null 2>&1
      fi ;;
    *) say "starting $name"; inside "$ENGINE" start "$name" >/dev/null ;;
  esac
  for _ in $(seq 600); do
    case $(inside "$ENGINE" exec "$name" systemctl is-system-running 2>/dev/null || true) in
      running|degraded) return ;;
    esac
    sleep 0.5
  done
  die "systemd in $name did not come up: lab.sh run $ENGINE logs $name"
}

# Called once per connection: join the host's network namespace as it is now (it changes when the host reboots).
connect() {
  exec nsenter -t "$(inside "$ENGINE" inspect -f '{{.State.Pid}}' "$1")" --net -- \
    python3 "$(dirname "${BASH_SOURCE[0]}")/forward.py" connect "$2"
}

forward() {
  local name=$1 port=$2 host_port=$3 file=$LAB_DIR/forwards/$1-$2
  runs "$file" "forward.py listen $port " && return
  setsid python3 "$(dirname "${BASH_SOURCE[0]}")/forward.py" listen "$port" -- "${BASH_SOURCE[0]}" connect "$name" "$host_port" \
    </dev/null >"$LAB_DIR/forward-$name-$port.log" 2>&1 &
  echo $! > "$file"
  for _ in $(seq 600); do
    kill -0 "$(cat "$file")" 2>/dev/null || { rm -f "$file"; die "$(tail -n 1 "$LAB_DIR/forward-$name-$port.log")"; }
    grep -q listening "$LAB_DIR/forward-$name-$port.log" && return
    sleep 0.1
  done
}

stop_forwards() {
  local file
  for file in "$LAB_DIR/forwards/$1"-*; do
    if runs "$file" 'forward.py listen '; then kill "$(cat "$file")"; fi
    rm -f "$file"
  done
}

destroy() {
  stop_forwards "$1"
  if private && ! alive; then
    [ -d "$LAB_DIR/storage" ] || return 0
    start_namespaces
  fi
  inside "$ENGINE" rm -f -v -t 5 "$1" >/dev/null 2>&1 || true
}

hosts() {
  if private && ! alive; then
    [ -d "$LAB_DIR/storage" ] || return 0
    start_namespaces
  fi
  inside "$ENGINE" ps -a --format '{{.Names}}'
}

down() {
  local name
  stop_forwards '*'
  if ! private; then return; fi
  if alive; then
    inside podman rm -fav -t 5 >/dev/null 2>&1 || true
    # podman enables controllers for its containers; give the hierarchy back as it was found
    inside bash -c '
      cd /sys/fs/cgroup
      find libpod_parent -depth -type d -exec rmdir {} \; 2>/dev/null || true
      for c in $(cat cgroup.subtree_control); do
        grep -qw "$c" "$1" || echo "-$c" > cgroup.subtree_control || true
      done' lab "$LAB_DIR/subtree_control.before" 2>/dev/null || true
    kill "$(cat "$LAB_DIR/slirp4netns.pid")" "$(cat "$LAB_DIR/pid")" 2>/dev/null || true
  fi
  rm -f "$LAB_DIR"/{pid,slirp4netns.pid,ready}
}

run() {
  if private; then alive || die "the lab is down: lab.sh up"; fi
  if private; then
    exec nsenter -t "$(cat "$LAB_DIR/pid")" --mount --net --wd="$PWD" -- "$@"
  else
    exec "$@"
  fi
}

command=${1:-}
case $command in
  up|create|forward|connect|run|destroy|hosts|down|image_name) shift; "$command" "$@" ;;
  *) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
