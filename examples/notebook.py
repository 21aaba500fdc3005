# %% [markdown]
# # A lab's morning
#
# Import the example rows, grade them, look at the scores, choose, write, and ask the ledger.
# Runs as a script, in Jupyter (`jupytext --to ipynb examples/notebook.py`) and in marimo (`marimo convert`).

# %%
import tempfile
from pathlib import Path

import alpasift

folder = Path(tempfile.mkdtemp(prefix="alpasift-notebook-"))
rows = next(path for path in (Path("examples/instructions.jsonl"), Path("instructions.jsonl")) if path.exists())

# %% [markdown]
# ## Import

# %%
db = alpasift.open(folder / "lab.duckdb")
imported = db.import_file(rows, dataset="examples")
print(f"{imported.rows} rows, {imported.duplicates} duplicates")

# %% [markdown]
# ## What would each grader cost? Nothing is sent.

# %%
for offer in db.plan(grader=["openai_batch:gpt-4.1-nano", "openai_batch:gpt-4o-mini"]).offers:
    if offer.estimate:
        print(f"{offer.grader:<26} ${offer.estimate.usd:.4f} expected, at most ${offer.estimate.ceiling_usd:.4f}")

# %% [markdown]
# ## Grade
#
# `rules` looks at form only. `fake` stands in for a model: its scores mean nothing. With a real model only the name
# changes: `db.grade(grader="llama_cpp:model.gguf", rubric="accuracy", progress=True)`.

# %%
for grader in ("rules", "fake"):
    summary = db.grade(grader=grader)
    print(f"{grader}: {summary.replied} replies, {summary.usable} scores, {summary.outcome}")

# %% [markdown]
# ## Look at the scores

# %%
for row in db.scores(grader="rules"):
    print(f"{row['score']!s:>6}  {row['rows']:>4}  {row['reason'] or ''}")

# %%
for row in db.show(grader="rules", score=0, limit=2):
    print(f"{row['reason']}: {row['instruction'][:70]!r} -> {row['output'][:40]!r}")

# %% [markdown]
# ## Choose, with a random baseline of the same size, and write

# %%
kept = db.select("kept", grader="rules", min_score=1)
baseline = db.select("baseline", order="random", match="kept")
written = db.export(folder / "kept.jsonl", selection="kept")
print(f"{kept.rows} of {kept.pool} rows kept, {written.path}")

# %% [markdown]
# ## The distribution in SQL
#
# `.df()` makes this a pandas DataFrame, `.pl()` a polars one.

# %%
by_category = db.sql("""
    select category, count(*) as rows, avg(score)::double as kept_share
    from graded_rows
    where grader = 'rules'
    group by category
    order by kept_share desc, category
""")
for category, count, share in zip(*by_category.arrow().to_pydict().values(), strict=True):
    print(f"{category:<24} {count:>4}  {share:.0%}")

# %% [markdown]
# ## What did it cost?

# %%
money = db.ledger()
print(f"spent ${money.spent_usd:.2f}, unresolved ${money.unresolved_usd:.2f}, {money.machine['seconds']:.1f} s of runs")
