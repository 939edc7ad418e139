#!/usr/bin/env bash
# lockstep plan from outside, and what runs take of what was planned: resident memory, limits, advice, the documented example.
source "$(dirname "$0")/lib.sh"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive MALLOC_ARENA_MAX=2
config=configs/tiny-gpt2.yaml
# 25 million weights: state far above what libraries keep for themselves. At stage 0 a rank needs about 466 MB.
larger=(--set model.hidden_size=512 --set model.num_hidden_layers=8 --set model.num_attention_heads=8
    --set model.max_position_embeddings=64 --set data.sequence_length=64 --set train.global_batch_size=8
    --set train.micro_batch_size=2 --set evaluation.every_steps=0 --set train.steps=3 --set lr_schedule.warmup_steps=1)
run() { # NAME ARGUMENTS...
    local name=$1
    shift
    timeout 300 "$lockstep" run $config --run-dir "$work/$name" "$@" >"$work/$name.log" 2>&1
}
# took_what_was_planned WHAT RUN RANKS: on every rank resident memory grew by the plan's bytes, within 5 % and 64 MB.
took_what_was_planned() {
    sed -n 's/.* memory: \([0-9]*\) bytes planned, \([0-9]*\) resident before, \([0-9]*\) at the end.*/\1 \2 \3/p' \
        "$work/$2"/logs/rank-*.log >"$work/memory"
    if awk -v ranks="$3" '{d = $3 - $2 - $1; if (d < 0) d = -d; if (d > 0.05 * $1 + 64e6) bad = 1}
        END {exit bad || NR != ranks}' "$work/memory"; then ok "$1"; else not_ok "$1" "$work/memory"; fi
}
planned() { # ARGUMENTS...: bytes of a rank
    "$lockstep" plan $config "$@" --json | sed -n 's/.*"needed": \([0-9]*\).*/\1/p'
}

# --- resident memory
run whole -n 2 "${larger[@]}" || tail -n 5 "$work/whole.log"
took_what_was_planned "ranks that hold everything take what was planned" whole 2
run cut -n 2 "${larger[@]}" --set zero.stage=3 --set 'activation_checkpointing={mode: full}' || tail -n 5 "$work/cut.log"
took_what_was_planned "ranks at stage 3 that recompute take what was planned" cut 2
check "the plan before the run is the one of the run" test "$(planned -n 2 "${larger[@]}")" = "$(sed -n \
    's/.* memory: \([0-9]*\) bytes planned.*/\1/p' "$work/whole/logs/rank-00000.log")"

# --- limits
limit=$((($(planned -n 2 "${larger[@]}") + $(planned -n 2 "${larger[@]}" --set zero.stage=3)) / 2))
expect 5 'memory.limit allows.*cheapest change that fits: --set zero' "a run beyond memory.limit ends with advice" \
    "$lockstep" run $config --run-dir "$work/beyond" -n 2 "${larger[@]}" --set memory.limit=$limit
check "nothing of it stays on disk" test ! -e "$work/beyond"
expect 0 'done|complete|files' "the same model trains at stage 3 under that limit" \
    "$lockstep" run $config --run-dir "$work/under" -n 2 "${larger[@]}" --set memory.limit=$limit --set zero.stage=3
took_what_was_planned "and takes no more than that" under 2
expect 5 'use a smaller model' "a limit that nothing fits says so" \
    "$lockstep" run $config --run-dir "$work/nothing" --set memory.limit=1000
expect 5 "part of the host's memory.*cheapest change that fits: --set" "a run beyond its hosts' memory is refused by its workers" \
    timeout 60 "$lockstep" run $config --run-dir "$work/host" -n 2 "${larger[@]}" --set data.sequence_length=1024 \
    --set model.max_position_embeddings=1024 --set train.global_batch_size=65536 --set train.micro_batch_size=32768
rm -rf "$work"/{whole,cut,under,host}
if [ "${LS_TEST_LONG:-0}" = 1 ]; then
    # 355 million weights: 5.7 GB of state at stage 0.
    medium=(--set model.hidden_size=1024 --set model.num_hidden_layers=24 --set model.num_attention_heads=16
        --set model.vocab_size=50257 --set model.max_position_embeddings=1024 --set data.sequence_length=64
        --set train.global_batch_size=4 --set train.micro_batch_size=1 --set evaluation.every_steps=0
        --set train.steps=2 --set lr_schedule.warmup_steps=1 --set memory.limit=3000000000)
    expect 5 'memory.limit allows' "a 350M GPT-2 does not fit 3 GB at stage 0" \
        "$lockstep" run $config --run-dir "$work/medium" -n 4 "${medium[@]}"
    run medium -n 4 "${medium[@]}" --set zero.stage=3 || tail -n 5 "$work/medium.log"
    took_what_was_planned "it trains at stage 3 on 4 ranks, in as much as was planned" medium 4
    rm -rf "$work/medium"
fi

# --- the command
expect 0 'fits: ' "a plan for this host is printed" "$lockstep" plan $config -n 2
expect 0 'NVIDIA A100' "a plan for a named GPU is printed" "$lockstep" plan $config -n 64 --set train.global_batch_size=64 \
    --gpu a100-80 --link-gbps 200 --ranks-per-node 4
expect 5 'changes that fit' "a plan that does not fit ends with 5" "$lockstep" plan $config --set memory.limit=1000000
expect 2 'did you mean h100-sxm' "an unknown GPU names the nearest" "$lockstep" plan $config --gpu h100
expect 2 'link-gbps takes a number above 0' "a link of nothing is refused" "$lockstep" plan $config --link-gbps 0
expect 2 'ranks-per-node takes' "a node without ranks is refused" "$lockstep" plan $config --ranks-per-node 0
expect 2 'No CONFIG|no CONFIG' "a plan needs a configuration" "$lockstep" plan
expect 2 'global_batch_size' "more ranks than sequences are refused" "$lockstep" plan $config -n 9
"$lockstep" plan configs/tiny-llama.yaml -n 4 --set zero.stage=2 --set memory.limit=1000 --json >"$work/plan.json" 2>"$work/plan.err"
check "JSON says the same in numbers" python3 -c '
import json, sys
plan = json.load(open(sys.argv[1]))
rank = plan["bytes_per_rank"]
assert plan["ranks"] == 4 and plan["fits"] is False and plan["changes_that_fit"] == []
assert rank["limit"] == 1000 and rank["needed"] == rank["arena"] + rank["host_total"]
assert sum(rank["host"].values()) == rank["host_total"]
names = ["parameters", "gradients", "optimizer", "gathered_parameters", "whole_gradients", "reduction_tree", "activations", "workspace", "data", "scalars"]
assert sum(rank[name] for name in names) == rank["arena"]
assert plan["predicted"]["step_seconds"] > 0 and plan["wire_bytes_per_step"] > 0
' "$work/plan.json"

# --- the example of docs/plan.md, made again
sed -n '/^\$ lockstep plan/,/^```/p' docs/plan.md | sed '/^```/d' >"$work/documented"
command=$(sed -n '1s/^\$ lockstep //p' "$work/documented")
eval "\"$lockstep\" $command" >"$work/made" 2>"$work/made.err"
sed 1d "$work/documented" | diff - "$work/made" >"$work/difference"
if [ -s "$work/made" ] && [ ! -s "$work/difference" ]; then
    ok "docs/plan.md shows what the command prints"
else
    not_ok "docs/plan.md shows what the command prints" "$work/difference"
fi

# ---- any number of micro-batches ----
# 67,108,864 of a model of 50 blocks take as long as a few hundred; one by one they took minutes.
absurd() { timeout 60 "$lockstep" plan configs/tiny-gpt2.yaml -n 1 --gpu h100-sxm --set zero.stage=3 --set model.num_hidden_layers=48 --set train.micro_batch_size=1 --json "$@"; }
expect 0 '"micro_batches": 67108864' "a plan of millions of micro-batches is made" absurd --set train.global_batch_size=67108864
