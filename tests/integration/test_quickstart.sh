#!/usr/bin/env bash
# The first of README's two commands, whole: it trains to fewer bits per byte than xz -9 needs; and what README says comes next.
source "$(dirname "$0")/lib.sh"

quickstart() { scripts/quickstart --yes "$@"; }
bits() { sed -n "s/^  $1 *\([0-9.]*\)$/\1/p" "$work/quickstart.log"; }

# Where packages are missing and cannot be installed: by name, exit 1. `poor` has what the script itself calls, no pkg-config.
mkdir "$work/poor"
for tool in bash sed dirname cat mktemp rm; do ln -s "$(command -v $tool)" "$work/poor/$tool"; done
expect 1 '^  libzmq$' "without apt-get the missing are named by pkg-config name" env PATH="$work/poor" bash scripts/quickstart
printf '#!/bin/sh\n' >"$work/poor/apt-get"
printf '#!/bin/sh\necho 1000\n' >"$work/poor/id"
chmod +x "$work/poor/apt-get" "$work/poor/id"
expect 1 '^  libzmq$' "without sudo too" env PATH="$work/poor" bash scripts/quickstart
printf '#!/bin/sh\ntouch "%s"\n' "$work/sudo-was-called" >"$work/poor/sudo"
chmod +x "$work/poor/sudo"
expect 1 'Nothing was installed' "without an answer nothing is installed" env PATH="$work/poor" bash scripts/quickstart
check "sudo was not called" test ! -e "$work/sudo-was-called"

quickstart --run-dir "$work/run" >"$work/quickstart.log" 2>&1
if [ $? -eq 0 ]; then ok "quickstart ends well"; else not_ok "quickstart ends well" "$work/quickstart.log"; fi
for what in 'gzip -9' 'xz -9' 'this model'; do
    check "the table has a row for $what" test -n "$(bits "$what")"
done
check "the model needs fewer bits per byte ($(bits 'this model')) than xz -9 ($(bits 'xz -9'))" \
    awk -v model="$(bits 'this model')" -v xz="$(bits 'xz -9')" 'BEGIN { exit !(model > 0 && model < xz) }'
check "at most 2 M tokens were trained on" awk -v tokens="$(grep '"kind":"step"' "$work/run/metrics.jsonl" | tail -n 1 |
    sed 's/.*"tokens":\([0-9]*\).*/\1/')" 'BEGIN { exit !(tokens > 0 && tokens <= 2000000) }'
check "a sample was written" grep -q '^And God said' "$work/quickstart.log"
expect 0 'And God' "generate continues a text" "$lockstep" generate "$work/run/final" --prompt "And God" --max-tokens 20

# Called again, in the folders it chooses itself; training too short to reach the goal is told, and exits 1.
before=$(ls runs 2>/dev/null | sort)
expect 1 'did not reach its goal' "training that is too short is told" quickstart -- --set train.steps=4 --set lr_schedule.warmup_steps=1
expect 1 'did not reach its goal' "a second call works" quickstart -- --set train.steps=4 --set lr_schedule.warmup_steps=1
made=$(comm -13 <(echo "$before") <(ls runs | sort))
check "each call has a run directory of its own" test "$(wc -w <<<"$made")" -eq 2
for run in $made; do rm -rf "runs/$run"; done

# README, "Train your own".
head -c 300000 "$work/run/console.log" /usr/share/common-licenses/* >"$work/my-text.txt" 2>/dev/null
check "README: prepare" "$lockstep" data prepare "$work/my-text.txt" -o "$work/mine"
check "README: train your own" "$lockstep" run configs/quickstart.yaml -n 2 --run-dir "$work/own" \
    --set "data.train=[{path: $work/mine/train}]" --set "data.validation=[{path: $work/mine/validation}]" \
    --set train.steps=5 --set lr_schedule.warmup_steps=1
check "README: generate" "$lockstep" generate "$work/own/final" --prompt "Once" --max-tokens 5
