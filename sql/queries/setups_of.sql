-- The graders and rubrics that have been asked about rows of a dataset version, by the names and versions a person may give; no
-- grade is looked at, which makes this fast. Parameters: version_id.
select distinct
    g.label as grader, g.name as grader_name, g.version as grader_version,
    b.label as rubric, b.name as rubric_name, b.version as rubric_version,
    s.grader_id::varchar as grader_id, s.rubric_id::varchar as rubric_id
from setups s
join grader_labels g using (grader_id)
join rubric_labels b using (rubric_id)
where s.task = 'grade' and s.setup_id in (
    select q.setup_id
    from questions q
    where q.example_id in (select example_id from dataset_rows where version_id = $version_id::uuid)
)
order by grader, rubric;
