-- One row per dataset row and reply about it: the answer verbatim, how it was parsed, and its cost.
-- outcome is answered, rejected_free or unknown (sent, no result); reason is why there is no score. A row with several samples
-- or retries has several replies; equal rows share theirs.
create or replace view graded_replies as
select
    d.label as dataset, r.position, g.label as grader, b.label as rubric, q.sample, p.outcome, n.reading.score as score,
    n.reading.reason as reason, p.text, p.finish_reason, p.model, c.input_tokens, c.output_tokens, c.usd, p.error,
    p.recorded_at, r.example_id, r.version_id, p.attempt_id, p.key, p.request_id
from replies p
join questions q using (key)
join setups s using (setup_id)
join dataset_rows r on r.example_id = q.example_id
join datasets d using (version_id)
join grader_labels g using (grader_id)
join rubric_labels b using (rubric_id)
left join latest_readings n using (attempt_id, key, request_id)
left join charged_answers c using (attempt_id, key, request_id)
where s.task = 'grade';
