#!/usr/bin/env bash
# Runs that an earlier version began go on: what is stored in tests/reference/earlier was left by one, at step 8 of 12.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
export OMP_NUM_THREADS=1
stored=tests/reference/earlier

losses() { # ATTEMPT FILE
    sed -n 's/.*"kind":"step","step":\([0-9]*\),"attempt":'"$1"',.*"loss":\([-0-9.e]*\),.*/\1 \2/p' "$2" | awk '$1 > 8'
}
# Rounding of a few hundred terms, in fp32 and in bf16, on whatever processor.
declare -A limit=([fp32]=1e-5 [bf16]=1e-2)
for precision in fp32 bf16; do
    run=$work/$precision
    cp -r "$stored/$precision" "$run"
    expect 0 "" "verify reads what an earlier version left ($precision)" "$lockstep" verify "$run"
    expect 0 "from step 8" "its run goes on, on other ranks and at another stage" "$lockstep" run "$stored/run.yaml" --run-dir "$run" \
        --set precision=$precision -n 3 --set zero.stage=3 --resume
    paste -d ' ' <(losses 1 "$run/metrics.jsonl") <(losses 2 "$run/metrics.jsonl") >"$work/pairs"
    if awk -v limit="${limit[$precision]}" '{d = ($2 - $4) / $2; if ($1 != $3 || d > limit || d < -limit) bad = 1} END {exit bad || NR != 4}' "$work/pairs"; then
        ok "with the losses that it had there"
    else
        not_ok "with the losses that it had there" "$work/pairs"
    fi
    expect 0 "" "and is proven to its end" "$lockstep" verify "$run" --deep
done
