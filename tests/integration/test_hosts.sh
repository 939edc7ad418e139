#!/usr/bin/env bash
# `lockstep run --hostfile` over three virtual hosts: the same run as on one, and what is wrong with a host, a network or a hostfile is named.
source "$(dirname "$0")/hosts/hosts.sh"
hosts_enter "$0" "$@"
source "$(dirname "$0")/lib.sh"
config=$PWD/configs/tiny-gpt2.yaml
mkdir "$work/shared"
cd "$work/shared" || exit 1
hosts_up 3
export OMP_NUM_THREADS=1
printf '# three hosts\nh1 slots=2\n\nh2 slots=2   # the second\n\th3\tslots=2\r\n' >three

weights() { sha256sum <"$1/final/model.safetensors"; }
run() { on h1 "$lockstep" run "$config" "$@"; }
fixed="--set train.reduction=fixed --set train.micro_batch_size=1"

# ---- a run ----
# ssh gives a host none of the variables of this one, and this one changes what products are computed with.
export ONEDNN_MAX_CPU_ISA=SSE41
# shellcheck disable=SC2086
expect 0 "steps +20 of 20" "a run over three hosts by hostfile ends well" run -n 6 --hostfile three --run-dir three-hosts $fixed
# shellcheck disable=SC2086
expect 0 "steps +20 of 20" "a run on one of them" run -n 2 --run-dir one-host $fixed
check "leaves the same weights, bit for bit" test "$(weights three-hosts)" = "$(weights one-host)"
check "six ranks took part, two on each host" \
    bash -c 'tail -n 1 three-hosts/metrics.jsonl | grep -q "\"hosts\":\[\"h1\",\"h2\",\"h3\"\],\"ranks\":6,\"ranks_per_node\":2,"'
unset ONEDNN_MAX_CPU_ISA
check "the coordinator listened at the address towards the others" grep -q "^endpoint tcp://10.77.0.1:" three-hosts/lock
check "and at loopback when all ranks were here" grep -q "^endpoint tcp://127.0.0.1:" one-host/lock

# ---- collectives ----
# Hosts with as many ranks each reduce within, then between them; others, and ranks dealt out in turn, do without.
collectives=$(dirname "$lockstep")/tests/unit/mpi_comm
collectives_on() { # SLOTS RANKS WHAT [ARGUMENT...]
    local slots host=0
    for slots in $1; do echo "h$((++host)) slots=$slots"; done >slots
    expect 0 "PASSED  . 9 test" "collectives are right on $3" on h1 env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        mpirun -np "$2" --hostfile slots --bind-to none --oversubscribe "${@:4}" "$collectives"
}
collectives_on "1 1 1" 3 "three hosts of one rank"
collectives_on "2 2" 4 "two hosts of two"
collectives_on "3 3" 6 "two hosts of three"
collectives_on "2 1 1" 4 "hosts with more and with fewer"
collectives_on "2 2" 4 "two hosts whose ranks take turns" --map-by node
# Open MPI names its own shared memory after processes too, so here it has to do without.
expect 0 "ranks of a host cannot map memory of each other" "ranks that do not see each other's processes say so" \
    on h1 env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun -np 3 --bind-to none --oversubscribe --mca btl self,tcp \
    unshare --pid --fork --mount-proc --kill-child "$collectives"
check "and theirs are right" grep -q "PASSED  . 9 test" "$work/expect.log"

# ---- hostfiles ----
wrong() { # TEXT EXPECTED WHAT
    printf '%b' "$1" >wrong
    expect 2 "$2" "$3" run --hostfile wrong --run-dir none
}
wrong 'h1 slots=2\nh2 slots=two\n' "wrong:2: 'slots=two' is not understood" "a bad line is named with its number"
wrong 'h1\n# h2\nh3 slots=1 slots=2\n' "wrong:3: 'slots=2' is not understood after the first slots" "so are slots given twice"
wrong 'h1 slots=2\nh2\nH1 slots=1\n' "wrong:3: host H1 is named twice, first in line 1" "a host that stands twice is named with both lines"
wrong '-oProxyCommand=x\n' "wrong:1: '-oProxyCommand=x' is no name of a host" "a host that would be an option is refused"
wrong '# nothing\n\n' "names no host" "a hostfile without hosts is refused"
expect 2 "nowhere" "a missing hostfile is told" run --hostfile nowhere --run-dir none
expect 2 "8 ranks do not fit on 3 hosts with room for 6 .h1 2, h2 2, h3 2." "more ranks than slots are refused with the room of each host" \
    run -n 8 --hostfile three --run-dir none --set launcher.ranks_per_node=2
expect 2 "with room for 3" "launcher.ranks_per_node limits the slots" run -n 4 --hostfile three --run-dir none --set launcher.ranks_per_node=1
expect 2 "SLURM_JOB_ID is not set" "srun outside Slurm is refused" run --run-dir none --set launcher.type=srun
check "what is refused leaves no run directory" test ! -e none

# ---- the launcher's keys ----
cat >"$work/wrapper" <<'WRAPPER'
#!/bin/sh
echo "$(hostname) $OMPI_COMM_WORLD_RANK $GREETING $INHERITED $OMP_NUM_THREADS" >>"$1"
shift
exec "$@"
WRAPPER
chmod +x "$work/wrapper"
export INHERITED=heir
expect 0 "steps +20 of 20" "a wrapper and variables are given to every host" run -n 3 --hostfile three --run-dir wrapped \
    --set launcher.ranks_per_node=1 --set "launcher.wrapper=[$work/wrapper, $work/wrapped]" \
    --set 'launcher.environment=[GREETING=hello world, INHERITED]'
printf 'h%d %d hello world heir 1\n' 1 0 2 1 3 2 >expected
check "they are there, with OMP_NUM_THREADS" bash -c 'sort "$0" | diff expected -' "$work/wrapped"

# ---- the doctor ----
doctor() { on h1 "$lockstep" doctor --hostfile three --seconds 3 --run-dir . "$@"; }
for host in h1 h2 h3; do link $host rate 100; done
expect 0 "^ok +host +h2: 1 rank, clock" "doctor finds nothing wrong with three hosts alike" doctor --set launcher.ranks_per_node=1
check "it measured every pair" bash -c "grep -cE '^ok +pair +h[123] - h[123]: [0-9]+ us, [0-9.]+ MB/s$' '$work/expect.log' | grep -qx 3"
check "and all together" grep -qE "^ok +all-reduce +[0-9.]+ MB/s over all ranks" "$work/expect.log"
link h3 rate 10
expect 1 "^WRONG cluster +host h3 is slow: at most [0-9.]+ MB/s" "doctor names the host whose link is slow" doctor --set launcher.ranks_per_node=1
check "with what to do" grep -q "fix: look at its cable" "$work/expect.log"
check "and blames no other" bash -c "! grep -E '^WRONG' '$work/expect.log' | grep -vq 'host h3'"
for host in h1 h2 h3; do link $host rate 0; done
printf 'h1\nno-such-host\n' >unknown
expect 1 "^WRONG way +to no-such-host: the name cannot be resolved" "doctor names a host that cannot be found" \
    on h1 "$lockstep" doctor --hostfile unknown --seconds 1 --run-dir .

# ---- what can be wrong ----
# What a host without the run directory keeps goes to its TMPDIR.
mkdir "$work/kept"
unseen() { TMPDIR=$work/kept run -n 6 --hostfile three --set 'launcher.environment=[TMPDIR]' --set fault.max_restarts=0 "$@"; }
on h3 mount -t tmpfs none "$work/shared"
expect 4 "host h3 does not see the run directory $work/shared/unseen: there is no such folder" "a host without the run directory is named" \
    unseen --run-dir unseen
check "it made nothing there" on h3 test ! -e "$work/shared/unseen"
on h3 mkdir -p "$work/shared/other" && on h3 sh -c "echo 0123456789abcdef0123456789abcdef | tr -d '\n' >'$work/shared/other/token'"
expect 4 "host h3 does not see .*/other: there is another folder of that name" "a host with another folder of that name is named" \
    unseen --run-dir other
check "a log of it is kept there" bash -c "grep -l 'does not see' '$work/kept'/lockstep-*-rank-00004.log"
on h3 umount -l "$work/shared"

expect 2 "no interface 'eth9'. There are: lo \(127.0.0.1\), e0 \(10.77.0.1\)" "a wrong interface is named, with those there are" \
    run -n 6 --hostfile three --run-dir none --set coordinator.interface=eth9
expect 2 "10.9.9.9 is no address of this host" "a wrong address to bind is named" \
    run -n 6 --hostfile three --run-dir none --set coordinator.bind=10.9.9.9 --set coordinator.port=4711
expect 0 "steps +20 of 20" "the right interface is taken" run -n 3 --hostfile three --run-dir by-interface --set coordinator.interface=e0 \
    --set launcher.ranks_per_node=1
# The coordinator's only address is one that the others have no way to.
on h1 ip address add 10.99.0.1/32 dev lo
unreached() { # RUN HOST...
    local run=$1
    printf '%s\n' "${@:2}" >"$run.hosts"
    run -n $(($# - 1)) --hostfile "$run.hosts" --run-dir "$run" --set coordinator.bind=10.99.0.1 --set fault.connect_timeout_seconds=3 --set fault.max_restarts=0
}
expect 6 "host h2 cannot reach the coordinator: .* within 3 s at tcp://10.99.0.1:[0-9]+ " "a host that cannot reach the coordinator is named with the address tried" \
    unreached second h1 h2
expect 6 "host h3 cannot reach the coordinator: .* within 3 s at tcp://10.99.0.1:[0-9]+ " "so is the host of rank 0" unreached first h3 h1
wall() { # RULE: what host h1 drops; none: nothing
    on h1 nft delete table inet wall 2>/dev/null
    [ -z "$1" ] || on h1 nft "add table inet wall; add chain inet wall input { type filter hook input priority 0; policy accept; }; add rule inet wall input $1 drop"
}
if command -v nft >/dev/null; then
    wall "ip saddr 10.77.0.2 tcp dport 4712"
    expect 6 "host h2 cannot reach the coordinator: .*at tcp://10.77.0.1:4712 \(no answer\)" "a host behind a firewall is named" \
        run -n 3 --hostfile three --run-dir walled --set launcher.ranks_per_node=1 --set coordinator.port=4712 --set fault.connect_timeout_seconds=3 --set fault.max_restarts=0
    # Both addresses are offered, and the first one is behind the wall.
    on h1 ip link add e1 type veth peer name e2
    on h1 ip address add 10.78.0.1/24 dev e1
    on h1 ip link set e1 up && on h1 ip link set e2 up
    on h2 ip route add 10.78.0.0/24 via 10.77.0.1
    on h3 ip route add 10.78.0.0/24 via 10.77.0.1
    wall "ip daddr 10.77.0.1 tcp dport 4713"
    expect 0 "steps +20 of 20" "where one address does not answer, the next one is tried" \
        run -n 3 --hostfile three --run-dir second-address --set launcher.ranks_per_node=1 --set coordinator.port=4713 --set fault.start_timeout_seconds=30
    wall ""
else
    skip "a host behind a firewall" "there is no nft (Debian: nftables)"
fi

# ---- a host that is lost ----
if [ "${LS_TEST_LONG:-0}" = 1 ]; then
    printf 'h1 slots=1\nh2 slots=1\nh3 slots=1\n' >spare
    for host in h1 h2 h3; do link $host rate 10; done # a step takes a tenth of a second
    lossy=(-n 2 --hostfile spare --set train.steps=40 --set checkpoint.every_steps=10 --set fault.stall_timeout_seconds=3)
    (
        for ((i = 0; i < 600; i++)); do [ "$(grep -c '"kind":"step"' lossy/metrics.jsonl 2>/dev/null || true)" -ge 15 ] 2>/dev/null && break; sleep 0.1; done
        link h2 down
    ) &
    # shellcheck disable=SC2086
    expect 0 "host h2 does not answer any more: it gets no rank" "a spare host takes the ranks of one that is lost" \
        run "${lossy[@]}" --run-dir lossy $fixed
    link h2 up
    for host in h1 h2 h3; do link $host rate 0; done
    # shellcheck disable=SC2086
    run -n 1 --run-dir lossless --set train.steps=40 $fixed >"$work/lossless.log" 2>&1
    check "the run ends with the weights of one that lost nothing" test "$(weights lossy)" = "$(weights lossless)"
fi
