"""The least that a program must do to grade rows by batch: render, upload, poll, download, insert. No ledger, no care.

    python benchmarks/floor.py ROWS.jsonl SERVER_URL OUT.duckdb

It would lose money at the first lost answer. It is what `openai_batch_52k.py` measures AlpaSift against.
"""

from __future__ import annotations

import io
import json
import re
import sys
import time
from pathlib import Path

import duckdb
import openai
import pyarrow as pa

from alpasift.graders.prompts.rubric import load_rubric

MODEL, ROWS_A_FILE = "gpt-4o-mini", 50_000


def main() -> None:
    rows_file, url, out = sys.argv[1:4]
    with Path(rows_file).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    con = duckdb.connect(out)
    rows_in = pa.table(
        {"row": range(len(rows)), **{k: [r[k] for r in rows] for k in ("instruction", "input", "output")}}
    )
    con.register("rows_in", rows_in)
    con.execute("create table rows as select * from rows_in")
    system = re.sub(r"\{\{.*?\}\}", "", load_rubric("accuracy").system)
    client = openai.OpenAI(base_url=url, api_key="rehearsal", max_retries=0)
    batches = []
    for start in range(0, len(rows), ROWS_A_FILE):
        buffer = io.BytesIO()
        for number, row in enumerate(rows[start : start + ROWS_A_FILE], start):
            text = f"Instruction: {row['instruction']}\nInput: {row['input']}\nResponse: {row['output']}\nScore:"
            messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            body = {"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0}
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            buffer.write(json.dumps(line).encode() + b"\n")
        buffer.seek(0)
        file_id = client.files.create(file=("rows.jsonl", buffer), purpose="batch").id
        batches.append(
            client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h").id
        )
    numbers, scores = [], []
    for batch_id in batches:
        while (batch := client.batches.retrieve(batch_id)).status != "completed":
            time.sleep(0.2)
        for line in client.files.content(batch.output_file_id).content.splitlines():
            found = json.loads(line)
            numbers.append(int(found["custom_id"]))
            scores.append(float(found["response"]["body"]["choices"][0]["message"]["content"]))
    con.register("result", pa.table({"row": numbers, "score": scores}))
    con.execute("create table scores as select * from result")
    print(con.execute("select count(*), avg(score) from scores").fetchone())


main()
