# What demo/run and demo/serve share: messages, prerequisites, a cgroup to work in.
# shellcheck shell=bash

# program: the name of the make target, for messages.
program=${program:-$(basename "$0")}
[[ $program != run ]] || program=demo

cannot() {
    printf 'make %s: %s\n' "$program" "$*" >&2
    exit 1
}

# eventually COMMAND…: wait until it succeeds; give up after two minutes.
eventually() {
    local deadline=$((SECONDS + 120))
    while ((SECONDS < deadline)); do
        if "$@"; then return 0; fi
        sleep 0.05
    done
    return 1
}

# serve_cgroup: the name of the cgroup of this checkout's `make serve`.
serve_cgroup() { printf 'jobworker-serve-%s' "$(pwd | cksum | cut -d' ' -f1)"; }

# find_cgroup NAME: print the path of the directory NAME in a mounted cgroup v2 hierarchy.
find_cgroup() {
    local mount
    while read -r mount; do
        mount=$(printf '%b' "$mount")
        if [[ -d $mount/$1 ]]; then
            printf '%s' "$mount/$1"
            return
        fi
    done < <(awk '$3 == "cgroup2" { print $2 }' /proc/self/mounts)
    return 1
}

is_empty() { grep -q 'populated 0' "$1/cgroup.events"; }
shim_is_gone() { [[ ! -e $1/shim.lock ]] || flock --nonblock "$1/shim.lock" true; }

# end_jobs CGROUP RUN_DIR: kill the jobs that are left, wait for their shim, remove the cgroup.
end_jobs() {
    echo 1 >"$1/cgroup.kill"
    eventually is_empty "$1" && eventually shim_is_gone "$2" &&
        find "$1" -depth -type d -exec rmdir {} \;
}

# remove_directory DIR: remove it, and the cgroup2 that make_cgroup may have mounted in it.
remove_directory() {
    if mountpoint -q "$1/cgroup2"; then umount "$1/cgroup2" || return; fi
    rm -rf --one-file-system "$1"
}

# make_cgroup NAME DIR: make the directory NAME (or keep it) in a cgroup v2 hierarchy and print its
# path. A hierarchy that is mounted already is used; else one is mounted at DIR.
make_cgroup() {
    local name=$1 mount_point=$2 mount
    while read -r mount; do
        mount=$(printf '%b' "$mount") # spaces are octal escapes in /proc/self/mounts, proc(5)
        if mkdir -p "$mount/$name" 2>/dev/null; then
            pass_controllers_on "$mount"
            printf '%s' "$mount/$name"
            return
        fi
    done < <(awk '$3 == "cgroup2" { print $2 }' /proc/self/mounts)
    mkdir -p "$mount_point"
    if ! mount -t cgroup2 none "$mount_point" 2>/dev/null || ! mkdir -p "$mount_point/$name"; then
        cannot 'needs a cgroup v2 hierarchy that it may write to: there is none, and mounting one' \
            'failed. In a container, run it with --privileged.'
    fi
    pass_controllers_on "$mount_point"
    printf '%s' "$mount_point/$name"
}

# pass_controllers_on DIR: enable what limits need for the cgroups below DIR, as far as that is
# possible; what is not there, or bound to cgroup v1, the server names when a limit needs it.
pass_controllers_on() {
    local controller
    for controller in cpu memory io pids; do
        { echo "+$controller" >"$1/cgroup.subtree_control"; } 2>/dev/null || true
    done
}

check_host() {
    [[ $(id -u) = 0 ]] || cannot 'needs root, which alone may create cgroups. Try: sudo make' \
        "$program"
    grep -qw cgroup2 /proc/filesystems || cannot 'needs a kernel with cgroup v2 (Linux 5.14 or later).'
}
