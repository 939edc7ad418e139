# Sourced by the integration tests: each promise prints one line 'ok - ...' or 'not ok - ...', or 'skip - ... # reason'.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
lockstep=${LOCKSTEP:-build/lockstep}
lockstep=$(realpath "$lockstep")
work=$(mktemp -d)
failures=0

finish() {
    local status=$?
    rm -rf "$work"
    [ "$status" -eq 0 ] && [ "$failures" -gt 0 ] && status=1
    exit "$status"
}
trap finish EXIT

ok() { echo "ok - $1"; }
not_ok() { # WHAT [EVIDENCE-FILE]
    echo "not ok - $1"
    failures=$((failures + 1))
    [ -z "${2:-}" ] || tail -n 15 "$2" | sed 's/^/#   /'
}
skip() { echo "skip - $1 # $2"; }

# until_true SECONDS WHAT PROCESS EVIDENCE-FILE COMMAND...: waits until the command succeeds. SECONDS is a generous end, not a promise:
# it is 'not ok' when they pass, or when PROCESS, whose doing it would be, has ended before.
until_true() {
    local end=$((SECONDS + $1)) what=$2 process=$3 evidence=$4
    shift 4
    until "$@" 2>/dev/null; do
        if [ "$SECONDS" -ge "$end" ] || { ! kill -0 "$process" 2>/dev/null && ! "$@" 2>/dev/null; }; then
            not_ok "$what" "$evidence"
            return 1
        fi
        sleep 0.05
    done
}

# end_after SECONDS PROCESS: kills the process if it does not end by itself, so that it does not keep the tests from ending.
# `end_watched PROCESS` calls that off.
declare -A watchdogs
end_after() {
    (
        sleep "$1" &
        trap 'kill $!; exit' TERM
        wait $! && kill -KILL "$2"
    ) >/dev/null 2>&1 &
    watchdogs[$2]=$!
}
end_watched() {
    kill "${watchdogs[$1]:-}" 2>/dev/null
    unset "watchdogs[$1]"
}

# check WHAT COMMAND...: the command succeeds.
check() {
    local what=$1
    shift
    if "$@" >"$work/check.log" 2>&1; then ok "$what"; else not_ok "$what" "$work/check.log"; fi
}

# expect CODE TEXT WHAT COMMAND...: the command ends with CODE, and its output matches the extended regular expression TEXT.
expect() {
    local code=$1 text=$2 what=$3 status=0
    shift 3
    "$@" >"$work/expect.log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne "$code" ]; then
        not_ok "$what (exit $status, not $code)" "$work/expect.log"
    elif ! grep -qE -- "$text" "$work/expect.log"; then
        not_ok "$what (no '$text' in the output)" "$work/expect.log"
    else
        ok "$what"
    fi
}
