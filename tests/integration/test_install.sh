#!/usr/bin/env bash
# What `make install` puts into a system works from there, and completes its command line in bash.
source "$(dirname "$0")/lib.sh"

check "make install puts the programs and the completion under PREFIX" make -s install "DESTDIR=$work/root" PREFIX=/opt/lockstep
check "and nothing else" test "$(cd "$work/root/opt/lockstep" && find . -type f | sort | tr '\n' ' ')" = \
    "./bin/lockstep ./bin/lockstep-worker ./share/bash-completion/completions/lockstep "
cp configs/tiny-gpt2.yaml "$work/tiny.yaml"
PATH=$work/root/opt/lockstep/bin:$PATH
cd "$work" || exit 1
expect 0 "steps +20 of 20" "an installed lockstep finds its worker, through a link on the path too" env "PATH=$PATH" \
    bash -c 'ln -s "$(command -v lockstep)" linked && ./linked run tiny.yaml -n 2'

# shellcheck disable=SC1091
source "$work/root/opt/lockstep/share/bash-completion/completions/lockstep"
complete_words() { # WORD...: the last one is completed; prints the candidates
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _lockstep
    echo "${COMPREPLY[*]}"
}
completes() { # "CANDIDATES" WORD...
    local wanted=$1 found
    shift
    found=$(complete_words "$@")
    if [ "$found" = "$wanted" ]; then ok "'$*' is completed by '$wanted'"; else not_ok "'$*' is completed by '$found', not '$wanted'" /dev/null; fi
}
completes "status stop" lockstep st
completes "verify" lockstep ve
completes "--version" lockstep --v
completes "--hostfile --help" lockstep run --h
completes "--ranks --resume --run-dir" lockstep run --r
completes "prepare" lockstep data p
completes "--shard-tokens --split-on" lockstep data prepare --s
completes "train.steps=" lockstep run --set train.st
completes "zero.stage=" lockstep run tiny.yaml -n 2 --set = zero.st
completes "fp32 fp16" lockstep run --set precision = fp
completes "fast fixed" lockstep run --set = train.reduction =
completes "false" lockstep run --set checkpoint.async = f
completes "optimizer.lr" lockstep run --accept optimizer.l
completes "tiny.yaml" lockstep run t
completes "runs/tiny" lockstep status runs/t
completes "runs" lockstep run tiny.yaml --run-dir ru
completes "" lockstep nonsense --set
