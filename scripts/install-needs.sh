#!/bin/sh
# Installs, from the distribution's packages, what `build` or `test` needs and this
# machine lacks. Says what it installs; does nothing when all is there.
set -eu

want=${1:?usage: install-needs.sh build|test}

missing=
need() { # need COMMAND-OR-FILE PACKAGE
    case "$1" in
        /*) [ -e "$1" ] && return 0 ;;
        *) command -v "$1" >/dev/null 2>&1 && return 0 ;;
    esac
    case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
}

need cc gcc
need protoc protobuf-compiler
need /usr/include/google/protobuf/descriptor.proto libprotobuf-dev
if [ "$want" = test ]; then
    need c++ g++
    need etcd etcd-server
    need etcdctl etcd-client
    need ip iproute2
    need ping iputils-ping
    need iptables iptables
    need nft nftables
    need tshark tshark
    need systemd-analyze systemd
    need promtool prometheus
    need groff groff-base
    need sysctl procps
    need tmux tmux
    need debootstrap debootstrap
    need dockerd docker.io
    # A package of its own since Debian 13, before that a part of docker.io.
    need docker docker-cli
    # The tests put it into containers, where no library is.
    need busybox busybox-static
fi

if [ -n "$missing" ]; then
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 || {
            echo "needed packages:$missing; install them as root, or install sudo" >&2
            exit 1
        }
        as_root=sudo
    fi
    command -v apt-get >/dev/null 2>&1 || {
        echo "this is no Debian or Ubuntu; install what these packages hold:$missing" >&2
        exit 1
    }
    echo "installing:$missing"
    $as_root apt-get update -qq
    case " $missing " in
        *" docker-cli "*)
            apt-cache show docker-cli >/dev/null 2>&1 ||
                missing="$(echo "$missing" | sed 's/ docker-cli//')"
            ;;
    esac
    # dockerd and etcd would be started, and dockerd change the machine's packet filter.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap '$as_root rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
        $as_root chmod 755 "$policy"
    fi
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# Debian's etcd and docker.io are enabled, so they start at the next boot; the tests start
# their own.
if ! command -v cargo >/dev/null 2>&1; then
    echo "cargo is missing: install Rust ($(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or later) with rustup, or with the package rustup of your distribution" >&2
    exit 1
fi
