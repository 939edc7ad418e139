#!/usr/bin/env bash
# Bad input and faults: one clear error each, its exit code, nothing lost.
source "$(dirname "$0")/lib.sh"
config=configs/tiny-gpt2.yaml
run() { timeout 120 "$lockstep" run "$config" --run-dir "$work/$1" "${@:2}"; }

# --- configuration
expect 2 'Did you mean train\.steps' "an unknown key names the nearest known one" run a --set train.stepz=3
expect 2 'unknown key zero\.offload' "a key that there is not is refused by name" run a --set zero.offload=true
expect 2 'global_batch_size.*(1|at least)' "a value out of range names the key and the range" run a --set train.global_batch_size=0
expect 2 'num_attention_heads: found 3, which does not divide' "heads that do not divide the width are refused" run a --set model.num_attention_heads=3
expect 2 '2 sequences cannot feed 3 ranks' "a step needs a sequence for every rank" run a -n 3 --set train.global_batch_size=2 --set train.micro_batch_size=1
odd=$(printf 'a\tb')
expect 2 'is not UTF-8, or has control characters.*--run-dir' "a run directory that no message can name is refused" timeout 60 "$lockstep" run "$config" --run-dir "$work/$odd"
check "and not made" test ! -e "$work/$odd"
check "nothing of a refused run stays on disk" test ! -e "$work/a"

root=$(echo /*)
expect 2 '--run-dir is empty' "an empty run directory is refused" timeout 60 "$lockstep" run "$config" --run-dir ""
check "and no folder made for it" test "$root" = "$(echo /*)"

printf 'fd00::2 slots=1\nfd00::7 slots=1\n' >"$work/six"
expect 2 'names fd00::2, and mpirun takes no address of IPv6' "what mpirun would read as another host is refused" run a -n 2 --hostfile "$work/six"
expect 2 'the path of --output is longer' "a bench does not write where half of its path leads" \
    timeout 60 "$lockstep" bench "$config" -n 1 --output "$work/$(printf 'abcdefghi/%.0s' {1..100})"
check "and makes nothing" test ! -e "$work/abcdefghi"

# --- a locale whose numbers have a comma
if localedef -i de_DE -f UTF-8 "$work/de_DE.UTF-8" >/dev/null 2>&1; then
    ${CC:-cc} -O1 -Wall -Wextra -Werror -shared -fPIC -o "$work/locale.so" tests/integration/locale.c
    commas=(env "LD_PRELOAD=$work/locale.so" "LOCPATH=$work" LC_ALL=de_DE.UTF-8)
    check "the library takes the user's locale over" test "$("${commas[@]}" printf %.1f 0,5)" = "0,5"
    run points -n 2 --set name=one >"$work/points.out" 2>&1
    expect 0 'validation loss +[0-9]+\.[0-9]' "a library that takes over a locale with a comma in numbers ends no run" \
        "${commas[@]}" timeout 120 "$lockstep" run "$config" --run-dir "$work/commas" -n 2 --set name=one
    check "and changes no configuration" cmp "$work/points/config.yaml" "$work/commas/config.yaml"
    check "nor what stands in a checkpoint" diff -r "$work/points/checkpoints" "$work/commas/checkpoints"
else
    skip "a locale whose numbers have a comma" "localedef or the source of de_DE is missing"
fi

# --- what starts a run
mkfifo "$work/unread"
exec 7<>"$work/unread" # open for reading, and never read
status=0
timeout -s KILL 120 "$lockstep" run "$config" --run-dir "$work/quiet" --set train.steps=1500 --set checkpoint.every_steps=0 >&7 2>"$work/quiet.err" || status=$?
exec 7>&-
check "a run ends though nobody reads what it prints" test $status -eq 0
check "its lines are in console.log" test "$(grep -c '^step' "$work/quiet/console.log")" -eq 1500

# --- data
printf 'one line of text that is long enough for some samples of a tiny length\n%.0s' {1..400} >"$work/text"
check "prepare a text" "$lockstep" data prepare "$work/text" -o "$work/data"
data() { run "$1" --set "data.train=[{path: $2}]" --set 'data.validation=[]' --set evaluation.every_steps=0 "${@:3}"; }
cp -r "$work/data" "$work/truncated"
truncate -s -100 "$work"/truncated/train/*.bin
expect 3 'train-000\.bin holds .*truncated' "a truncated shard is named" data b "$work/truncated/train"
mkdir "$work/foreign" "$work/empty"
head -c 5000 /dev/urandom >"$work/foreign/a.bin"
expect 3 'foreign/a\.bin .*does not begin with the header' "a foreign file among the shards is named" data b "$work/foreign"
expect 3 'empty has no dataset\.json' "a dataset without shards is refused" data b "$work/empty"
expect 3 'cannot open .*absent' "a dataset that is not there is named" data b "$work/absent"
expect 3 '100001 that one sample' "a text shorter than a sequence is refused" data b "$work/data/train" --set data.sequence_length=100000 --set model.max_position_embeddings=100000
expect 2 'data exists already' "prepare does not overwrite" "$lockstep" data prepare "$work/text" -o "$work/data"
: >"$work/nothing"
expect 3 'there is no text in' "an empty text is refused" "$lockstep" data prepare "$work/nothing" -o "$work/none"

# --- checkpoints: damage is found, named, and the one before is used
check "a run with checkpoints" run c --set checkpoint.every_steps=5 --set train.steps=15
printf 'X' | dd of="$work/c/checkpoints/step-00000015/model.safetensors" bs=1 seek=2000 conv=notrunc status=none
expect 0 'step-00000015.*(damaged|hash)' "a flipped byte is found and the checkpoint before is used" \
    run c --resume --set train.steps=15 --set checkpoint.every_steps=5
check "the run is whole again" test -e "$work/c/checkpoints/step-00000015/manifest.json"
for name in ../evil /etc/passwd link fifo; do
    cp -r "$work/c" "$work/d"
    folder=$work/d/checkpoints/step-00000015
    ln -s /etc/passwd "$folder/link"
    mkfifo "$folder/fifo"
    sed -i "s|\"model.safetensors\"|\"$name\"|" "$folder/manifest.json"
    expect 0 'step-00000015' "a manifest that names $name is not believed" timeout 60 "$lockstep" run "$config" \
        --run-dir "$work/d" --resume --set train.steps=15 --set checkpoint.every_steps=5
    rm -rf "$work/d"
done

# --- a full disk
if mkdir "$work/small" && mount -t tmpfs -o size=1m none "$work/small" 2>/dev/null; then
    expect 4 'space|full|bytes' "a full disk ends the run with the checkpoint code" \
        timeout 60 "$lockstep" run "$config" --run-dir "$work/small/run" --set model.hidden_size=128 --set train.steps=4
    umount -l "$work/small"
else
    skip "a full disk ends the run with the checkpoint code" "mounting a small tmpfs is not allowed here"
fi

# --- a launcher that can start nobody, and a worker that never arrives
mkdir "$work/fake"
printf '#!/bin/sh\necho "ssh: connect to host n7 port 22: No route to host" >&2\nexit 255\n' >"$work/fake/mpirun"
chmod 755 "$work/fake/mpirun"
expect 6 "it says 'ssh: connect to host n7 port 22: No route to host'\. See that 'ssh n7 true' works from here without a password or a question\. Look at logs/launcher\.log" \
    "a launcher that can start nobody is quoted" env PATH="$work/fake:$PATH" timeout 60 "$lockstep" run "$config" --run-dir "$work/f"
expect 6 'rank 0 has not started' "a rank that never joins is named" timeout 60 "$lockstep" run "$config" --run-dir "$work/e" \
    --set fault.start_timeout_seconds=3 --set 'launcher.arguments=[sh, -c, sleep 100]'
