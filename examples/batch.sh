#!/usr/bin/env bash
# The whole way of a paid run by batch, against a server on this machine that speaks the API: nothing costs anything.
#   examples/batch.sh .venv/bin/alpasift [ROWS.jsonl [ROWS_A_BATCH]]
set -euo pipefail
alpasift=$(realpath "$1"); rows=$(realpath "${2:-examples/instructions.jsonl}"); python=$(dirname "$alpasift")/python
folder=$(mktemp -d); trap 'kill $server 2>/dev/null; rm -rf "$folder"' EXIT
cd "$folder"
echo '{"gpt-4.1-nano": {"input": "0.10", "cached_input": "0.025", "output": "0.40"}}' > bill_prices.json
mkfifo hold; sleep 100000 > hold & holder=$!
"$python" -m alpasift.graders.rehearsal --key play-money-key --prices bill_prices.json --batch-seconds 8 < hold > server.json &
server=$!; trap 'kill $server $holder 2>/dev/null; rm -rf "$folder"' EXIT
while [ ! -s server.json ]; do sleep 0.1; done
url=$("$python" -c 'import json; print(json.load(open("server.json"))["url"])')
export OPENAI_BASE_URL=$url OPENAI_API_KEY=play-money-key ALPASIFT_DB=lab.duckdb
say() { echo; echo "\$ alpasift $*"; "$alpasift" "$@" || echo "(exit code $?)"; }
grader=(--grader openai_batch:gpt-4.1-nano --rubric accuracy)
say import "$rows" --dataset rows
say plan "${grader[@]}"
say probe --dataset rows -n 20 "${grader[@]}" --now --budget 0.5 --yes --quiet
say grade "${grader[@]}" --yes --no-wait --batch-rows "${3:-60}" --poll-seconds 0.2 --grace-seconds 0 --quiet
say status
echo; echo "\$ alpasift grade ... & sleep 2; kill -9    # a process that waits for its batches dies"
"$alpasift" grade "${grader[@]}" --yes --poll-seconds 0.2 --grace-seconds 0 --quiet & victim=$!; sleep 2; kill -9 $victim; wait $victim 2>/dev/null || true
say collect --wait --poll-seconds 0.5
say grade "${grader[@]}" --yes --poll-seconds 0.2 --grace-seconds 0 --quiet
say ledger; say ledger --json
say ledger --by batch
echo; echo "the server's own bill, line by line:"
"$python" - "$url" <<'P'
import json, sys, urllib.request
from decimal import Decimal
request = urllib.request.Request(sys.argv[1].replace("/v1", "/rehearsal/bill"), headers={"Authorization": "Bearer play-money-key"})
lines = [json.loads(line, parse_float=Decimal) for line in urllib.request.urlopen(request)]
print(f"{len(lines)} executions, {sum(Decimal(str(line['usd'])) for line in lines):f} dollars")
P
