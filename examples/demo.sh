#!/bin/sh
# The main job on the example rows, each command shown before it runs. Usage: examples/demo.sh ALPASIFT GRADER
# A model grades the first 60 of them (ROWS=186: all), which takes two cores about a minute; `rules` checks all.
set -eu
alpasift=$1
grader=$2
here=$(dirname "$0")
work=.demo
mkdir -p "$work"
rm -f "$work"/demo.duckdb "$work"/demo.duckdb.* "$work"/kept.json* "$work"/rejected.jsonl*
ALPASIFT_DB=$work/demo.duckdb
export ALPASIFT_DB

run() {
    printf '\n$ alpasift %s\n' "$*"
    "$alpasift" "$@" 2>&1
}

if [ "$grader" = rules ]; then
    run import "$here/instructions.jsonl" --dataset examples
    run plan --grader rules
    run filter "$here/instructions.jsonl" --dataset examples --grader rules -o "$work/kept.json" \
        --rejected "$work/rejected.jsonl"
    run scores
    run show --score 0 --limit 3
else
    head -n "${ROWS:-60}" "$here/instructions.jsonl" > "$work/rows.jsonl"
    run import "$work/rows.jsonl" --dataset examples
    run plan --grader "$grader"
    run grade --grader "$grader" --answer-format expected_score
    run scores
    run select --grader "$grader" --by expected_score --keep-share .5 --name half
    run export -o "$work/kept.json" --selection half --with score,expected_score,grader
fi
run ledger
printf '\nKept rows: %s\n' "$work/kept.json"
if [ "$grader" != rules ]; then
    printf 'What such scores are worth, in some 200 more questions: alpasift --db %s audit %s --rows 20\n' \
        "$ALPASIFT_DB" "$grader"
fi
