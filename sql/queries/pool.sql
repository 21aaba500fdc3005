-- Internal.
-- The rows that a selection chooses from, and that `select --where` may name: one row per row of a dataset version, with
-- its grade by one grader and rubric. score is null where there is none, and reason says why (not_graded: not graded
-- yet). expected is expected_score under its former name, for this release. preference is chosen or rejected for the
-- answers of preference and KTO rows, null for other rows.
-- Parameters: version_id, grader_id, rubric_id (null for no grades).
select
    d.label as dataset, r.position, r.category, r.example_id,
    e.system, e.turns, e.instruction, e.input, e.output, length(e.output) as output_chars,
    g.score, g.expected_score,
    case when g.score is null then coalesce(g.reason, 'not_graded') else g.reason end as reason,
    g.explanation, g.model, g.samples, g.spread,
    (select label from grader_labels where grader_id = $grader_id::uuid) as grader,
    (select label from rubric_labels where rubric_id = $rubric_id::uuid) as rubric,
    r.other,
    case when r.other like '%"answer":"%' then nullif(r.other::json ->> '$."$form".answer', 'more') end as preference,
    g.expected_score as expected
from dataset_rows r
join datasets d using (version_id)
join examples e using (example_id)
left join (
    select example_id, score, expected_score, reason, explanation, model, samples, spread
    from graded
    where grader_id = $grader_id::uuid and rubric_id = $rubric_id::uuid
) g using (example_id)
where r.version_id = $version_id::uuid
order by r.position;
