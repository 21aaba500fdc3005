-- One row per dataset row, grader and rubric: a row of a file with its grade; equal rows share one grade. Rows that a
-- grader has not graded are not included.
create or replace view graded_rows as
select
    d.label as dataset, r.position, r.category, r.example_id,
    e.system, e.turns, e.instruction, e.input, e.output,
    g.grader, g.rubric, g.score, g.expected_score, g.reason, g.explanation, g.model, g.samples, g.spread, g.usd,
    g.recorded_at,
    d.version_id, g.grader_id, g.rubric_id
from dataset_rows r
join datasets d using (version_id)
join examples e using (example_id)
join graded g using (example_id);
