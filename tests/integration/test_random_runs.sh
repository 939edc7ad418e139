#!/usr/bin/env bash
# Whole runs of drawn legal configurations (tests/integration/random_runs) for a quarter of a minute, the same ones each time. LS_TEST_LONG=1: others for ten
# minutes; LS_TEST_SEED: from there on.
source "$(dirname "$0")/lib.sh"
if [ "${LS_TEST_LONG:-0}" = 1 ]; then seconds=600 seed=$RANDOM$RANDOM; else seconds=15 seed=1; fi
tests/integration/random_runs --seed "${LS_TEST_SEED:-$seed}" --count 10000 --seconds $seconds >"$work/random.log" 2>&1
status=$?
cat "$work/random.log"
bad=$(grep -c '^not ok' "$work/random.log")
failures=$((failures + bad))
[ "$status" -eq 0 ] || [ "$bad" -gt 0 ] || not_ok "random runs ended with $status" "$work/random.log"
