-- Internal.
-- The distinct rows of a dataset version that a grader scored from low to high by a rubric, in order.
-- Parameters: version_id, grader_id, rubric_id, low, high.
select f.position, g.score
from first_positions f
join graded g using (example_id)
where f.version_id = $version_id::uuid
  and g.grader_id = $grader_id::uuid and g.rubric_id = $rubric_id::uuid
  and g.score between $low::decimal(9, 3) and $high::decimal(9, 3)
order by f.position;
