# What demo/run and demo/serve share: messages, prerequisites, a cgroup to work in.
# shellcheck shell=bash

# program: the name of the make target, for messages.
program=$(basename "$0")
[[ $program != run ]] || program=demo

cannot() {
    printf 'make %s: %s\n' "$program" "$*" >&2
    exit 1
}

# make_cgroup NAME DIR: make the directory NAME (or keep it) in a cgroup v2 hierarchy and print its
# path. A hierarchy that is mounted already is used; else one is mounted at DIR.
make_cgroup() {
    local name=$1 mount_point=$2 mount
    while read -r mount; do
        mount=$(printf '%b' "$mount") # spaces are octal escapes in /proc/self/mounts, proc(5)
        if mkdir -p "$mount/$name" 2>/dev/null; then
            printf '%s' "$mount/$name"
            return
        fi
    done < <(awk '$3 == "cgroup2" { print $2 }' /proc/self/mounts)
    mkdir -p "$mount_point"
    if ! mount -t cgroup2 none "$mount_point" 2>/dev/null || ! mkdir -p "$mount_point/$name"; then
        cannot 'needs a cgroup v2 hierarchy that it may write to: there is none, and mounting one' \
            'failed. In a container, run it with --privileged.'
    fi
    printf '%s' "$mount_point/$name"
}

check_host() {
    [[ $(id -u) = 0 ]] || cannot 'needs root, which alone may create cgroups. Try: sudo make' \
        "$program"
    grep -qw cgroup2 /proc/filesystems || cannot 'needs a kernel with cgroup v2 (Linux 5.14 or later).'
}
