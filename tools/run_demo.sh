# `make run`: an embedded cluster that lasts as long as this script, with flmping run in it.
set -eu

BIN="${BIN:-.venv/bin}"
FLAME_CLUSTER=make-run
export FLAME_CLUSTER
unset FLAME_ENDPOINT

show() {
    printf '\n$ %s\n' "$*"
    "$BIN/$@"
}

trap '"$BIN/flmadm" down --quiet' EXIT INT TERM
show flmadm up --detach --temporary
show flmping
show flmping -p -t 30000
show flmctl list -s
printf '\n$ flmadm down\n'
