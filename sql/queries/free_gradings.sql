-- Internal.
-- The gradings of a dataset version that have cost no dollar, by name. Parameters: version_id.
select grader_id, rubric_id, grader, rubric, scored
from gradings
where version_id = $version_id::uuid and scored > 0 and usd = 0
order by grader, rubric;
