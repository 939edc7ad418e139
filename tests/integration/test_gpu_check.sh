#!/usr/bin/env bash
# gpu-check over a bundle of the emulated programs: its steps run where there is no GPU, its report is kept, a step that fails or hangs
# does not stop or disturb the rest; and the benchmark beside PyTorch, with a stand-in for that. LS_TEST_LONG=1: every step.
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
# As on a machine with several GPUs, of which it takes one, in a job of one task.
expect 0 'all that ran passed' "its steps pass over the stand-ins" env LS_STANDIN_DEVICES=4 SLURM_JOB_ID=7 SLURM_JOB_NODELIST="$(hostname)" \
    SLURM_TASKS_PER_NODE=1 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 "$bundle/bin/gpu-check" --tiny --seconds 1000 --only $steps -o "$work/report"
report=$work/report
row() { grep -qE "^\| $1 \| .* \| $2 \| [0-9]+ \|$" "$report/report.md"; }
unsaid=0
for step in ${steps//,/ }; do row "$step" '(passed|skipped|incomplete)' || unsaid=1; done
if [ $unsaid = 0 ] && row stages passed && row memory passed && grep -q 'stage 3 on 2 ranks: losses within' "$report/report.md" && { [ ! -e build/emulator/lib/libcudnn.so.9 ] || grep -q 'attention: backward by cuDNN .* differs from our kernels by' "$report/report.md"; }; then
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
tar -tzf "$report/logs.tgz" >"$work/kept.txt" 2>&1
if grep -q '^logs/stages-2-3/logs/rank-00001.log$' "$work/kept.txt" && grep -q '^logs/memory/metrics.jsonl$' "$work/kept.txt" && ! grep -qE 'safetensors|\.key$' "$work/kept.txt"; then
    ok "logs.tgz has the runs' logs, no weights and no keys"
else
    not_ok "logs.tgz has the runs' logs, no weights and no keys" "$work/kept.txt"
fi

# 64 KiB are too little for a model: that step fails, those behind it run, and the report says so.
expect 1 'something failed' "a step that fails is said in the exit code" env LS_STANDIN_MEMORY=65536 "$bundle/bin/gpu-check" --tiny --only memory,sanitizer -o "$work/report"
if row memory failed && row sanitizer '(skipped|passed)'; then ok "the steps behind it run all the same"; else not_ok "the steps behind it run all the same" "$report/report.md"; fi
expect 0 'all that ran passed' "what there is no time for is not run" "$bundle/bin/gpu-check" --tiny --seconds 4 --only kernels -o "$work/report"
if row kernels 'not run'; then ok "and the report says so"; else not_ok "and the report says so" "$report/report.md"; fi
expect 2 'no step is called' "a step of no such name is refused" "$bundle/bin/gpu-check" --only nonsense -o "$work/report"
expect 2 'no bundle' "a folder that is no bundle is refused" scripts/gpu-check "$work"

# ---- what hangs ----

workers() { # process ids of the bundle's workers
    local exe
    for exe in /proc/[0-9]*/exe; do
        [ ! "$exe" -ef "$bundle/libexec/lockstep-worker" ] || cut -d / -f 3 <<<"$exe"
    done
}
shared_memory() { grep -ohE '/dev/shm/lockstep-[0-9a-f]+-a[0-9]+' "/proc/$1/maps" 2>/dev/null | sort -u; } # PROCESS
# A worker that is stopped at its first kernel holds its run up, whose end by signals does not reach it.
export LS_STANDIN_STOP=$work/stop
is_stopped() { [ ! -e "$LS_STANDIN_STOP" ] && shared=$(shared_memory "$(workers)") && [ -n "$shared" ]; }
touch "$LS_STANDIN_STOP"
"$bundle/bin/gpu-check" --tiny --run-seconds 8 --only memory,loss -o "$report" >"$work/stuck.log" 2>&1 </dev/null &
checker=$!
end_after 200 $checker
until_true 60 "a worker is started, and stopped" $checker "$work/stuck.log" is_stopped
status=0
wait $checker || status=$?
end_watched $checker
if [ $status = 1 ] && row memory failed && row loss passed && grep -q 'was ended after 8 s' "$report/report.md"; then
    ok "a run that hangs is ended in its time, and the step behind it passes"
else
    not_ok "a run that hangs is ended in its time, and the step behind it passes" "$report/report.md"
fi
if grep -qE 'left running and ended: .*lockstep-worker \(process [0-9]+\)' "$report/report.md" && [ -z "$(workers)" ] && ! ls -d "$shared"* 2>/dev/null | grep -q .; then
    ok "what it left running is ended and named"
else
    not_ok "what it left running is ended and named ($(workers | tr '\n' ' '))" "$report/report.md"
fi
touch "$LS_STANDIN_STOP"
"$bundle/bin/gpu-check" --tiny --only memory -o "$report" >"$work/left.log" 2>&1 </dev/null &
checker=$!
end_after 100 $checker
until_true 60 "a worker is started, and stopped" $checker "$work/left.log" is_stopped
kill -TERM $checker
status=0
wait $checker || status=$?
end_watched $checker
if [ $status = 143 ] && [ -z "$(workers)" ] && tar -tzf "$report/logs.tgz" 2>/dev/null | grep '^logs/memory/config.yaml$' >/dev/null && grep -q '^== memory' "$report/raw.log"; then
    ok "told to leave in the middle of a step it ends the run and keeps the logs"
else
    not_ok "told to leave in the middle of a step it ends the run and keeps the logs (exit $status; $(workers | tr '\n' ' '))" "$work/left.log"
fi

# ---- a machine without xz ----

mkdir "$work/no-xz"
printf '#!/bin/sh\nexit 127\n' >"$work/no-xz/xz"
chmod 755 "$work/no-xz/xz"
tar -C "$work" -I 'xz -0 -T2' --exclude 'libexec/*test_*' --exclude 'libexec/gpu_*' -cf "$work/bundle.tar.xz" lockstep-bundle
expect 0 'all that ran passed' "a packed bundle is unpacked where there is no xz" env PATH="$work/no-xz:$PATH" scripts/gpu-check --only machine -o "$report" "$work/bundle.tar.xz"

# ---- beside PyTorch ----

expect 0 'something is incomplete' "a benchmark without its peer is not taken for a whole one" "$bundle/bin/gpu-check" --tiny --only bench -o "$report"
if row bench incomplete && grep -qE '^\| tiny T32 \| [0-9,]+ \(B[24]\) ' "$report/report.md" && grep -q 'Not measured: tiny T32: PyTorch' "$report/report.md" && grep -q '"lockstep": {' "$report/bench.json"; then
    ok "the report says what is missing, and has what was measured"
else
    not_ok "the report says what is missing, and has what was measured" "$report/report.md"
fi

mkdir "$work/old"
printf '__version__ = "2.4.1"\nclass cuda:\n    is_available = staticmethod(lambda: True)\n' >"$work/old/torch.py"
expect 1 'no PyTorch: torch 2.4.1 is older than 2.5' "a PyTorch that is too old is no peer" env PYTHONPATH="$work/old" scripts/bench/gpu --tiny --models tiny --lockstep /bin/false

# A peer that prints between its objects, is cut off in the middle of one and then hangs. Lockstep is watched for what it saves.
cat >"$work/python" <<'PYTHON'
#!/bin/bash
[ "$1" != -c ] || exit 0
cat <<'OBJECT'
W1122 a warning
{"batch": 4, "attention": "flash", "tokens": 256, "seconds": 0.5, "tokens_per_second": 512.0, "peak_bytes": 2147483648, "mode": "eager", "modes": {"eager": {"batch": 4, "tokens_per_second": 512.0}}, "complete": false, "missing": "torch.compile at batch 4", "first_loss": 5.5, "version": "9.9"}
compiling
{"batch": 4, "attention": "fla
and so on
OBJECT
sleep 1000
PYTHON
# Bash cannot trap a signal that was ignored when it began, as SIGQUIT is behind "&" in a script: hence env, below.
cat >"$work/lockstep" <<END
#!/bin/bash
set -m
"$PWD/build/emulator/lockstep" "\$@" &
pid=\$!
trap 'kill -QUIT \$pid' QUIT
while kill -0 \$pid 2>/dev/null; do wait \$pid; status=\$?; done
find "\$4" -name '*.safetensors' -o -name metrics.jsonl >>"$work/saved.txt"
exit \$status
END
chmod 755 "$work/python" "$work/lockstep"
expect 3 'Not measured: tiny T32: PyTorch, torch.compile at batch 4' "what PyTorch had not compiled when its time ended is named" \
    env --default-signal=QUIT LS_STANDIN_DEVICES=3 CUDA_VISIBLE_DEVICES=2,0 scripts/bench/gpu --tiny --models tiny --batches 4 --python "$work/python" --torch-seconds 1 --lockstep "$work/lockstep" --json "$work/bench.json"
if grep -qE '^\| tiny T32 \| [0-9,]+ \(B4\) \| . \| 0\.0 \| 512 \(B4, eager\) \| . \| 2\.0 \| [0-9.]+ \|' "$work/expect.log"; then
    ok "what it had measured before is in the table"
else
    not_ok "what it had measured before is in the table" "$work/expect.log"
fi
if [ "$(grep -c 'metrics.jsonl' "$work/saved.txt")" = 1 ] && ! grep -q safetensors "$work/saved.txt"; then
    ok "the benchmark's runs save nothing"
else
    not_ok "the benchmark's runs save nothing" "$work/saved.txt"
fi
if python3 - "$work/bench.json" <<'PYTHON'; then ok "its JSON has the whole steps' times and what the log says of the libraries"; else not_ok "its JSON has the whole steps' times and what the log says of the libraries" "$work/bench.json"; fi
import json, sys
found = json.load(open(sys.argv[1]))["results"][0]
ours = found["lockstep"]
assert len(ours["wall_seconds"]) >= 3 and all(wall >= step for wall, step in zip(ours["wall_seconds"], ours["step_seconds"])), ours
assert abs(ours["tokens_per_second"] * sum(ours["wall_seconds"]) / len(ours["wall_seconds"]) - ours["tokens"]) < 1e-3 * ours["tokens"], ours
assert any("cublaslt:" in line for line in ours["log"]) and any("attention: " in line for line in ours["log"]), ours
assert found["torch"]["complete"] is False, found
PYTHON
