-- Internal.
-- The gradings of a dataset version: each grader and rubric that has answered about some of its rows, by the names and
-- versions a person may give, with the rubric's scale. No grade is read, which makes this fast. Parameters: version_id.
select
    g.label as grader, g.name as grader_name, g.version as grader_version, g.fingerprint,
    b.label as rubric, b.name as rubric_name, b.version as rubric_version, b.content as rubric_content,
    b.hidden, b.scale_low as low, b.scale_high as high, b.scale_step as step, b.threshold,
    s.grader_id::varchar as grader_id, s.rubric_id::varchar as rubric_id
from (select distinct grader_id, rubric_id from setups where task = 'grade' and setup_id in (
    select q.setup_id
    from questions q
    join replies p using (key)
    where q.example_id in (select example_id from dataset_rows where version_id = $version_id::uuid)
)) s
join grader_labels g using (grader_id)
join rubric_labels b using (rubric_id)
order by grader, rubric;
