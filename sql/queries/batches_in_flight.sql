-- Internal.
-- The batches in flight, with all that another process needs to collect them: who answers, which task, how it was
-- prompted. Parameters: none.
select
    b.attempt_id, b.batch_id, b.kind, b.facts as attempt_facts, b.version_id,
    s.setup_id, s.task, s.decoding, s.grader_id, g.fingerprint, s.rubric_id, r.content as rubric_content
from batches b
join setups s using (setup_id)
join graders g on g.grader_id = s.grader_id
join rubrics r on r.rubric_id = s.rubric_id
where not b.closed
order by b.opened_at, b.attempt_id;
