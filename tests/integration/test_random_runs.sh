#!/usr/bin/env bash
# Whole runs of random legal configurations (tests/integration/random_runs) for half a minute. LS_TEST_LONG=1: for ten; LS_TEST_SEED: from there on.
source "$(dirname "$0")/lib.sh"
if [ "${LS_TEST_LONG:-0}" = 1 ]; then seconds=600; else seconds=30; fi
tests/integration/random_runs --seed "${LS_TEST_SEED:-$RANDOM$RANDOM}" --count 10000 --seconds $seconds >"$work/random.log" 2>&1
status=$?
cat "$work/random.log"
bad=$(grep -c '^not ok' "$work/random.log")
failures=$((failures + bad))
[ "$status" -eq 0 ] || [ "$bad" -gt 0 ] || not_ok "random runs ended with $status" "$work/random.log"
