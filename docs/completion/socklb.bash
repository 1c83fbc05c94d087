# Completion of socklb for bash. Made from its parsers by `python3 docs/make_completion.py`.
# `source` it, or copy it to /usr/share/bash-completion/completions/socklb.

_socklb() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} options= words= typed=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "list destroy terminate watch flows probe rev-nat demo -h --help -V --version" -- "$word")
        return
    fi
    # In --option=value the = is a word.
    if [[ $word == = ]]; then
        word=
    elif [[ $before == = ]]; then
        before=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case ${COMP_WORDS[1]} in
        list)
            options="-h --help -t --tcp -u --udp -4 --ipv4 -6 --ipv6 --state -a --all -n --numeric --netns --readable-only -p --processes -e --extended -s --summary --json"
            words="dst src dport sport dev fwmark cgroup autobound uid pid stalled idle and or not state exclude"
            ;;
        destroy)
            options="-h --help -t --tcp -u --udp -4 --ipv4 -6 --ipv6 --state -n --numeric --netns --readable-only -p --processes --dry-run --limit --unbounded --unconnected --require-match --json --audit"
            words="dst src dport sport dev fwmark cgroup autobound uid pid stalled idle and or not state exclude"
            ;;
        terminate)
            options="-h --help --netns --readable-only --rev-nat --rev-nat-dir --conntrack --no-conntrack --external --dry-run --json --audit"
            ;;
        watch)
            options="-h --help --source --kubeconfig --kube-namespace --kube-selector --not-serving --terminating --netns --readable-only --rev-nat --rev-nat-dir --conntrack --no-conntrack --external --dry-run --audit --remember --remember-for --remember-as --log-json --metrics"
            ;;
        flows)
            options="-h --help --netns --readable-only -p --processes --json"
            ;;
        probe)
            options="-h --help --json"
            ;;
        rev-nat)
            options="-h --help --rev-nat-dir --stale --json"
            ;;
        demo)
            options="-h --help --json"
            ;;
    esac
    case $before in
        --state | state | exclude)
            if [[ $word == *,* ]]; then typed=${word%,*},; fi
            mapfile -t COMPREPLY < <(compgen -P "$typed" -W "established syn-sent syn-recv fin-wait1 fin-wait2 time-wait close close-wait last-ack listen closing new-syn-recv bound-inactive all connected synchronized bucket big" -- "${word##*,}")
            ;;
        --netns)
            if [[ $word == */* ]]; then
                _socklb_files -f
            else
                mapfile -t COMPREPLY < <(compgen -W "current all" -- "$word")
                _socklb_names /run/netns
            fi
            ;;
        --source)
            _socklb_files -f -W "- kubernetes"
            ;;
        --audit | --kubeconfig | --remember)
            _socklb_files -f
            ;;
        --rev-nat-dir)
            _socklb_files -d
            ;;
        --limit | --kube-namespace | --kube-selector | --not-serving | --terminating | --remember-for | --remember-as | --metrics) ;;
        dst | src | dport | sport | fwmark | cgroup | pid | stalled | idle) ;;
        dev)
            _socklb_names /sys/class/net
            ;;
        uid)
            mapfile -t COMPREPLY < <(compgen -u -- "$word")
            ;;
        *)
            if [[ $word == -* ]]; then words=$options; fi
            mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
            ;;
    esac
}

_socklb_files() {
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen "$@" -- "$word")
}

# Of what lies in a directory; not by -W, which would run a name such as $(...).
_socklb_names() {
    local path name
    for path in "$1"/*; do
        printf -v name %q "${path##*/}"
        if [[ -e $path && $name == "$word"* ]]; then COMPREPLY+=("$name"); fi
    done
}

complete -F _socklb socklb
