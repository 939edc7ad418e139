# Completion of lockstep's command line in bash: commands, options, keys and their words, configurations, run directories. All of it is asked
# of the program itself. `make install` puts it where bash-completion finds it; elsewhere: source scripts/completion/lockstep.bash

# All keys, each with the suffix, or where the word has a "=" the words that its key takes.
_lockstep_keys() { # SUFFIX PROGRAM WORD
    local suffix=$1 program=$2 word=$3
    if [[ $word == *=* ]]; then
        "$program" config --keys 2>/dev/null | awk -v key="${word%%=*}" '
            /^[^ ]/ { here = $0 == key }
            here && /^    one of / { sub(/^    one of /, ""); sub(/;.*/, ""); gsub(/, /, "\n"); print }
            here && /^    true or false/ { print "true\nfalse" }'
    else
        "$program" config --keys 2>/dev/null | awk -v suffix="$suffix" '/^[^ ]/ { print $0 suffix }'
    fi
}

_lockstep() {
    # "=" breaks words: --set=KEY=VALUE and --set KEY=VALUE come in pieces, which belong to one word.
    local program=${COMP_WORDS[0]} current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} at=$((COMP_CWORD - 1))
    local command=${COMP_WORDS[1]} key='' help candidates=() typed
    if [[ $current == = ]]; then current='' before='=' at=$COMP_CWORD; fi
    if [[ $before == = && $at -ge 2 ]]; then
        if [[ ${COMP_WORDS[at - 1]} == --* ]]; then
            before=${COMP_WORDS[at - 1]}
        elif [[ ${COMP_WORDS[at - 2]} == --set || ( ${COMP_WORDS[at - 2]} == = && ${COMP_WORDS[at - 3]} == --set ) ]]; then
            key=${COMP_WORDS[at - 1]}= before=--set
        fi
    fi
    COMPREPLY=()
    if [ "$COMP_CWORD" -le 1 ]; then
        mapfile -t candidates < <("$program" --help 2>/dev/null | awk '/^  [a-z]/ { print $1 } /^  --/ { print $1 }')
    elif [[ $command == data && $COMP_CWORD -eq 2 ]]; then
        candidates=(prepare inspect verify)
    elif [[ $before == --set ]]; then
        mapfile -t candidates < <(_lockstep_keys '=' "$program" "$key$current")
        [ -n "$key" ] || compopt -o nospace 2>/dev/null
    elif [[ $before == --accept ]]; then
        mapfile -t candidates < <(_lockstep_keys '' "$program" "$current")
    elif [[ $before == --run-dir || $before == --output || $before == -o ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t candidates < <(compgen -d -- "$current")
    elif [[ $current == -* ]]; then
        help=("$program" "$command")
        [[ $command == data ]] && help+=("${COMP_WORDS[2]}")
        mapfile -t candidates < <("${help[@]}" --help 2>/dev/null | grep -oE '^ +(-[a-zA-Z?], +)?--[a-z-]+' | grep -oE -- '--[a-z-]+')
    else
        compopt -o filenames 2>/dev/null
        case $command in
        status | stop | checkpoint | verify | blame)
            mapfile -t candidates < <({
                compgen -d -- "$current"
                for typed in runs/*/journal.db; do [ -e "$typed" ] && echo "${typed%/journal.db}"; done
            } | sort -u)
            ;;
        run | coordinator | plan | bench | config)
            mapfile -t candidates < <(compgen -d -- "$current"; compgen -f -X '!*.yaml' -- "$current"; compgen -f -X '!*.yml' -- "$current")
            ;;
        *) mapfile -t candidates < <(compgen -f -- "$current") ;;
        esac
    fi
    for typed in "${candidates[@]}"; do
        [[ $typed == "$current"* ]] && COMPREPLY+=("$typed")
    done
}
complete -F _lockstep lockstep
