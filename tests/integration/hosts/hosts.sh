# Sourced before lib.sh by tests that need several hosts: virtual ones on this machine, each with a network, a hostname, mounts and
# /dev/shm of its own, joined by a switch. They live in a process namespace, so whatever happens they end with the script, and no
# address, interface or process of theirs is seen outside.
#
#   hosts_enter "$0" "$@"     runs the script again inside, or prints "skip - ..." and ends
#   hosts_up N                makes h1 .. hN with addresses 10.77.0.1 .. N on interface e0, and $hosts/agent for mpirun
#   on HOST COMMAND...        runs a command there, in this directory
#   link HOST up | down       its cable
#   link HOST rate MBIT       both directions; 0: as fast as it goes
#   pids_on HOST NAME...      processes there that run one of these programs
#   lose_host HOST            all processes of runs there die, as when it crashes; its network still answers
#   is_clean HOST             no such process, and nothing of a run in its shared memory
#
# With LS_TEST_SSH=1 mpirun reaches the hosts through real ssh and an sshd on each (Debian: openssh-server), else through an agent that
# stands for both.

hosts_enter() {
    [ -z "${LS_HOSTS_INSIDE:-}" ] || return 0
    local missing=
    [ "$(id -u)" = 0 ] || missing="namespaces need root"
    for program in ip tc unshare nsenter; do
        command -v $program >/dev/null || missing="there is no $program (Debian: iproute2, util-linux)"
    done
    [ -n "$missing" ] || unshare --net --uts --mount --pid --fork true 2>/dev/null || missing="this kernel or container allows no namespaces"
    [ -n "$missing" ] || unshare --net ip link add e0 type veth peer name e1 2>/dev/null || missing="this kernel has no veth"
    if [ -n "$missing" ]; then
        echo "skip - several virtual hosts # $missing"
        # A script without any promise kept counts as failed.
        echo "ok - that virtual hosts cannot be made here is told"
        exit 0
    fi
    LS_HOSTS_INSIDE=1 exec unshare --mount --pid --fork --kill-child --mount-proc -- bash "$@"
}

hosts_wait() { # FILE: until it is there
    local i
    for ((i = 0; i < 200; i++)); do [ -s "$1" ] && return 0; sleep 0.02; done
    echo "not ok - a virtual host starts: no $1"
    exit 1
}

# What mpirun calls in the place of ssh: the words after the host are joined and given to a shell, with the variables of a login, as
# ssh does.
hosts_agent() {
    cat >"$hosts/agent" <<AGENT
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do shift; done
host=\$1
shift
exec env -i HOME=/ PATH="\$PATH" nsenter -t "\$(cat "$hosts/\$host")" --net --uts --mount -- sh -c "cd / && \$*"
AGENT
    chmod +x "$hosts/agent"
}

# ssh with keys and a configuration of its own, and an sshd on each host that is left with its namespaces.
hosts_ssh() {
    local i
    mkdir -p /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$hosts/key"
    ssh-keygen -q -t ed25519 -N '' -f "$hosts/host-key"
    for ((i = 1; i <= hosts_count; i++)); do echo "h$i,10.77.0.$i $(cut -d ' ' -f 1,2 "$hosts/host-key.pub")" >>"$hosts/known"; done
    cat >"$hosts/sshd_config" <<SSHD
HostKey $hosts/host-key
AuthorizedKeysFile $hosts/key.pub
StrictModes no
PermitRootLogin yes
PidFile none
MaxStartups 100
SSHD
    cat >"$hosts/ssh_config" <<SSH
IdentityFile $hosts/key
UserKnownHostsFile $hosts/known
BatchMode yes
SSH
    printf '#!/bin/sh\nexec ssh -F %s "$@"\n' "$hosts/ssh_config" >"$hosts/agent"
    chmod +x "$hosts/agent"
    for ((i = 1; i <= hosts_count; i++)); do on "h$i" /usr/sbin/sshd -f "$hosts/sshd_config" -E "$hosts/sshd$i.log"; done
}

hosts_up() { # N
    local i
    hosts=$work/hosts
    hosts_count=$1
    mkdir -p "$hosts"
    echo "127.0.0.1 localhost" >"$hosts/names"
    for ((i = 1; i <= $1; i++)); do echo "10.77.0.$i h$i" >>"$hosts/names"; done
    # shellcheck disable=SC2016
    unshare --net -- sh -c 'echo $$ >"$0.new" && mv "$0.new" "$0" && exec sleep infinity' "$hosts/switch" </dev/null >/dev/null 2>&1 &
    hosts_wait "$hosts/switch"
    hosts_switch=$(cat "$hosts/switch")
    nsenter -t "$hosts_switch" --net -- ip link add br0 type bridge
    nsenter -t "$hosts_switch" --net -- ip link set br0 up
    for ((i = 1; i <= $1; i++)); do
        # shellcheck disable=SC2016
        unshare --net --uts --mount -- sh -c 'hostname h$1 && mount --bind "$2/names" /etc/hosts && mount -t tmpfs none /dev/shm &&
            echo $$ >"$2/h$1.new" && mv "$2/h$1.new" "$2/h$1" && exec sleep infinity' sh "$i" "$hosts" </dev/null >/dev/null 2>"$hosts/h$i.log" &
    done
    for ((i = 1; i <= $1; i++)); do
        hosts_wait "$hosts/h$i"
        on "h$i" ip link add e0 type veth peer name "v$i" netns "$hosts_switch"
        nsenter -t "$hosts_switch" --net -- ip link set "v$i" master br0 up
        on "h$i" ip address add "10.77.0.$i/24" dev e0
        on "h$i" ip link set lo up
        on "h$i" ip link set e0 up
    done
    if [ -n "${LS_TEST_SSH:-}" ]; then hosts_ssh; else hosts_agent; fi
    export OMPI_MCA_plm=rsh OMPI_MCA_plm_rsh_agent=$hosts/agent OMPI_MCA_oob_tcp_if_include=e0 \
        OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp OMPI_MCA_btl_tcp_if_include=e0 OMPI_MCA_mpi_yield_when_idle=1
}

on() { # HOST COMMAND...
    # shellcheck disable=SC2016
    nsenter -t "$(cat "$hosts/$1")" --net --uts --mount -- sh -c 'cd "$0" && exec "$@"' "$PWD" "${@:2}"
}

link() { # HOST up | down | rate MBIT
    local number=${1#h} side
    case $2 in
    up | down) nsenter -t "$hosts_switch" --net -- ip link set "v$number" "$2" ;;
    rate)
        for side in "$(cat "$hosts/$1") e0" "$hosts_switch v$number"; do
            nsenter -t "${side% *}" --net -- tc qdisc del dev "${side#* }" root 2>/dev/null || true
            [ "$3" = 0 ] || nsenter -t "${side% *}" --net -- tc qdisc add dev "${side#* }" root tbf rate "$3mbit" burst 128kb latency 20ms
        done
        ;;
    esac
}

pids_on() { # HOST NAME...
    local host=$1 own entry name
    own=$(readlink "/proc/$(cat "$hosts/$host")/ns/uts")
    shift
    for entry in /proc/[0-9]*; do
        [ "$(readlink "$entry/ns/uts" 2>/dev/null)" = "$own" ] || continue
        for name in "$@"; do
            [ "$(cat "$entry/comm" 2>/dev/null)" != "$name" ] || echo "${entry#/proc/}"
        done
    done
}

lose_host() { # HOST
    # mpirun's daemon first: it would still tell of a rank. What started it (ssh's end of the connection) does not end, as when a host crashes:
    # else mpirun may only say that some daemon is gone.
    local daemons pid name
    daemons=$(pids_on "$1" orted)
    for pid in $daemons; do
        name=orted
        while [ "$name" != sshd ]; do
            pid=$(awk '/^PPid/ {print $2}' "/proc/$pid/status")
            name=$(cat "/proc/$pid/comm")
            [ "$name" != mpirun ] || break
            kill -STOP "$pid"
        done
    done
    # shellcheck disable=SC2046
    kill -KILL $daemons $(pids_on "$1" lockstep-worker)
}

is_clean() { # HOST
    [ -z "$(pids_on "$1" orted lockstep-worker | grep -vxf <(zombies))" ] && [ -z "$(on "$1" sh -c 'ls /dev/shm | grep ^lockstep-')" ]
}
zombies() { sed -n 's/^\([0-9]*\) (.*) Z .*/\1/p' /proc/[0-9]*/stat 2>/dev/null; }
