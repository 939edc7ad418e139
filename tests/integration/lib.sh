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

# ---- waiting for events ----

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

# end_after SECONDS PROCESS: kills the process if it does not end by itself, so that it does not keep the tests from ending;
# end_watched PROCESS calls that off.
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

# ---- runs in the background: by name, which is that of the run directory too ----

declare -A supervisors # their processes
run_seconds_max=300

# begin_run RUN COMMAND...: its output goes to RUN.out and RUN.err.
begin_run() {
    local run=$1
    shift
    "$@" >"$run.out" 2>"$run.err" </dev/null &
    supervisors[$run]=$!
    end_after "$run_seconds_max" $!
}
steps_told() { cat "$1/metrics.jsonl" 2>/dev/null | awk '/"kind":"step"/ {n++} END {print n + 0}'; } # RUN
events() { cat "$1/metrics.jsonl" 2>/dev/null | awk -v event="\"event\":\"$2\"" 'index($0, event) {n++} END {print n + 0}'; } # RUN EVENT
has_steps() { [ "$(steps_told "$1")" -ge "$2" ]; }
has_events() { [ "$(events "$1" "$2")" -ge "$3" ]; }
until_steps() { until_true "$run_seconds_max" "the run $1 goes on" "${supervisors[$1]}" "$1.err" has_steps "$1" "$2"; } # RUN COUNT
until_events() { # RUN EVENT COUNT
    until_true "$run_seconds_max" "the run $1 tells '$2'" "${supervisors[$1]}" "$1.err" has_events "$1" "$2" "$3"
}
# ends CODE TEXT WHAT RUN: it ends so, and says TEXT on standard error.
ends() {
    local status=0
    wait "${supervisors[$4]}" || status=$?
    end_watched "${supervisors[$4]}"
    if [ "$status" -ne "$1" ]; then
        not_ok "$3 (exit $status, not $1)" "$4.err"
    elif [ -n "$2" ] && ! grep -qE -- "$2" "$4.err"; then
        not_ok "$3 (no '$2')" "$4.err"
    else
        ok "$3"
    fi
}
worker_pid() { sed -n 's/.* process \([0-9]*\), attempt .*/\1/p' "$1/logs/rank-$(printf %05d "$2").log" | tail -n 1; } # RUN RANK

# ---- promises about commands ----

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
