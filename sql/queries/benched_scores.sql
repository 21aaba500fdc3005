-- Internal.
-- The scores and expected scores that one grader has given by one rubric to the distinct rows of a dataset version.
-- Parameters: version_id, grader_id, rubric_id.
select f.example_id, g.score, g.expected_score
from first_positions f
join (
    select example_id, score, expected_score
    from graded
    where grader_id = $grader_id::uuid and rubric_id = $rubric_id::uuid
) g using (example_id)
where f.version_id = $version_id::uuid and g.score is not null;
