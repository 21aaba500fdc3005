-- Internal.
-- The grades of a dataset version's rows by one grader and rubric, by position; rows that were not graded are left out.
-- Parameters: version_id, grader_id, rubric_id.
select
    r.position, g.score, g.expected_score, g.reason, g.explanation, g.reply, g.grader, g.rubric, g.model, g.samples,
    g.spread, g.usd
from dataset_rows r
join graded g using (example_id)
where r.version_id = $version_id::uuid and g.grader_id = $grader_id::uuid and g.rubric_id = $rubric_id::uuid
order by r.position;
