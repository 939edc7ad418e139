#!/usr/bin/env bash
# A rank that dies at every start, on one host, where no other host can take its place: the run goes on with fewer ranks where
# fault.min_ranks allows it, and else ends with the code of the last loss.
source "$(dirname "$0")/lib.sh"
config=$PWD/configs/tiny-gpt2.yaml
cd "$work" || exit 1

# A wrapper in the place of a broken device: of three ranks or more the third one dies before it does anything, as the others start.
cat >broken <<'WRAPPER'
#!/bin/sh
[ "$OMPI_COMM_WORLD_SIZE" -lt 3 ] || [ "$OMPI_COMM_WORLD_RANK" != 2 ] || {
    until [ -e "/dev/shm/lockstep-$LOCKSTEP_RUN_ID-a$LOCKSTEP_ATTEMPT" ]; do sleep 0.02; done
    sleep 1 # of a process that ends before mpirun has noted its start, mpirun does not always say which one it was
    kill -KILL $$
}
exec "$@"
WRAPPER
chmod +x broken
run() { # RUN ARGUMENTS...
    "$lockstep" run "$config" --run-dir "$1" -n 3 --set "launcher.wrapper=[$work/broken]" --set train.reduction=fixed \
        --set train.micro_batch_size=1 --set checkpoint.every_steps=5 "${@:2}" >"$1.out" 2>&1 </dev/null
}
run fewer --set fault.min_ranks=2 &
fewer=$!
run ended --set fault.min_ranks=3 &
ended=$!
run pairs -n 4 --set fault.min_ranks=1 --set zero.stage=1 --set zero.replicas=2 &
pairs=$!
# At once: mpirun often does not say which one it was.
sed '/until\|sleep/d' broken >at-once && chmod +x at-once
run early --set fault.min_ranks=2 --set "launcher.wrapper=[$work/at-once]" &
early=$!
# By itself, with a code and no word, as a container that does not start.
sed 's/kill -KILL.*/exit 3/' broken >ends && chmod +x ends
run coded --set fault.min_ranks=2 --set "launcher.wrapper=[$work/ends]" &
coded=$!

wait $fewer
status=$?
check "a run goes on with two ranks where the third dies at every start" test $status -eq 0
check "after three losses in a row" \
    bash -c "[ \"\$(grep -c '\"event\":\"fault\".*\"scope\":\"rank\"' fewer/metrics.jsonl)\" = 3 ] && grep -q '^attempt 4: resuming at step 0 of 20 on 2 ranks' fewer.out"
check "each told with rank and host" bash -c "[ \"\$(grep -c 'rank 2 on $(hostname) was lost' fewer.out)\" = 3 ]"
"$lockstep" run "$config" --run-dir whole -n 1 --set train.reduction=fixed --set train.micro_batch_size=1 >whole.out 2>&1
check "it ends with the weights of a run that lost nothing" cmp fewer/final/model.safetensors whole/final/model.safetensors
expect 0 "the tokens read again give the digests" "and its ledger holds" "$lockstep" verify fewer --deep

wait $ended
status=$?
check "where three ranks are needed it ends with 6" test $status -eq 6
check "and says why no restart follows" grep -q "rank 2 on .* was lost .* 3 restarts without progress are used up (fault.max_restarts)" ended.out
check "having tried no other number" bash -c "! grep -qE 'on [12] ranks?;' ended.out"

wait $early
status=$?
check "a run goes on though mpirun may not say which rank died so early" test $status -eq 0
check "with two ranks after three losses" \
    bash -c "[ \"\$(grep -cE 'rank 2 on $(hostname) was lost|(a rank|rank 2 on .*) was killed by signal 9 before it joined' early.out)\" -ge 3 ] && grep -q '^attempt 4: resuming at step 0 of 20 on 2 ranks' early.out"

wait $coded
status=$?
check "a run goes on with two ranks where the third ends with a code at every start" test $status -eq 0
check "named with host and code each time, and no other rank" \
    bash -c "[ \"\$(grep -c '^communication: rank 2 on $(hostname) ended with code 3 before it joined' coded.out)\" = 3 ] && ! grep -q 'rank [01] on' coded.out"

wait $pairs
status=$?
check "a number that the configuration cannot be run on is passed over" test $status -eq 0
check "two replicas go on with two ranks, not three" grep -q '^attempt 4: resuming at step 0 of 20 on 2 ranks' pairs.out
