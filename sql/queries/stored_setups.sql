-- Internal.
-- Every setup with all that its ids were made from: grader, what the task asks by, decoding. Parameters: none.
select s.setup_id, s.task, s.decoding, s.grader_id, g.name as grader, g.fingerprint, s.rubric_id, r.content
from setups s
join graders g using (grader_id)
join rubrics r using (rubric_id)
order by s.setup_id;
