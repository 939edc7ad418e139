#!/usr/bin/env bash
# gpu-check over a bundle of the emulated programs: its steps run where there is no GPU, its report is kept, a step that fails does not
# stop the rest. LS_TEST_LONG=1: every step.
source "$(dirname "$0")/lib.sh"
: "${LS_TEST_LONG:=0}"

if ! make -s -j2 emulated-gpu-programs >"$work/make.log" 2>&1; then
    not_ok "the emulated programs build" "$work/make.log"
    exit 1
fi
if [ ! -x build/emulator/lockstep ]; then
    skip "gpu-check" "CUDA's headers are not here (nvcc was not found)"
    exit
fi
export OMP_NUM_THREADS=1 LOCKSTEP_CUDA_LIBRARIES=$PWD/build/emulator/lib
check "a bundle of the emulated programs is made" scripts/bundle/make build/emulator "$work/lockstep-bundle"
bundle=$work/lockstep-bundle

steps=machine,attention,stages,memory
[ "$LS_TEST_LONG" = 0 ] || steps=machine,kernels,parity,training,attention,stages,fixed,loss,memory,bench_kernels,bench,sanitizer
expect 0 'all that ran passed' "its steps pass over the stand-ins" "$bundle/bin/gpu-check" --tiny --seconds 1000 --only $steps -o "$work/report"
report=$work/report
row() { grep -qE "^\| $1 \| .* \| $2 \| [0-9]+ \|$" "$report/report.md"; }
unsaid=0
for step in ${steps//,/ }; do row "$step" '(passed|skipped)' || unsaid=1; done
if [ $unsaid = 0 ] && row stages passed && row memory passed && grep -q 'stage 3 on 2 ranks: losses within' "$report/report.md" && { [ ! -e build/emulator/lib/libcudnn.so.9 ] || grep -q 'attention: cuDNN .* differs from our kernels by' "$report/report.md"; }; then
    ok "report.md says of each step what it found"
else
    not_ok "report.md says of each step what it found" "$report/report.md"
fi
if python3 - "$report/report.json" <<'PYTHON'; then ok "report.json is JSON with a status for each step"; else not_ok "report.json is JSON with a status for each step" "$report/report.json"; fi
import json, sys
report = json.load(open(sys.argv[1]))
assert [step["status"] for step in report["steps"] if step["step"] == "stages"] == ["passed"], report
PYTHON
if [ "$(grep -c '^== ' "$report/raw.log")" = "$(tr ',' '\n' <<<$steps | wc -l)" ]; then ok "raw.log has every step"; else not_ok "raw.log has every step" "$report/raw.log"; fi

# 64 KiB are too little for a model: that step fails, those behind it run, and the report says so.
expect 1 'something failed' "a step that fails is said in the exit code" env LS_STANDIN_MEMORY=65536 "$bundle/bin/gpu-check" --tiny --only memory,sanitizer -o "$work/report"
if row memory failed && row sanitizer '(skipped|passed)'; then ok "the steps behind it run all the same"; else not_ok "the steps behind it run all the same" "$report/report.md"; fi
expect 0 'all that ran passed' "what there is no time for is not run" "$bundle/bin/gpu-check" --tiny --seconds 4 --only kernels -o "$work/report"
if row kernels 'not run'; then ok "and the report says so"; else not_ok "and the report says so" "$report/report.md"; fi
expect 2 'no step is called' "a step of no such name is refused" "$bundle/bin/gpu-check" --only nonsense -o "$work/report"
expect 2 'no bundle' "a folder that is no bundle is refused" scripts/gpu-check "$work"
