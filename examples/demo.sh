#!/bin/sh
# The main job on the example rows, each command shown before it runs. Usage: examples/demo.sh ALPASIFT GRADER
set -eu
alpasift=$1
grader=$2
here=$(dirname "$0")
work=.demo
mkdir -p "$work"
rm -f "$work"/demo.duckdb "$work"/demo.duckdb.* "$work"/kept.json* "$work"/rejected.jsonl
ALPASIFT_DB=$work/demo.duckdb
export ALPASIFT_DB

run() {
    printf '\n$ alpasift %s\n' "$*"
    "$alpasift" "$@" 2>&1
}

run import "$here/instructions.jsonl" --dataset examples
run plan --grader "$grader"
run filter "$here/instructions.jsonl" --dataset examples --grader "$grader" -o "$work/kept.json" --rejected "$work/rejected.jsonl"
run scores
run show --score 0 --limit 3
run ledger
printf '\nKept rows: %s  the others, each with its reason: %s\n' "$work/kept.json" "$work/rejected.jsonl"
