-- Internal.
-- The finished audits of a grader by a rubric, newest first. Parameters: grader_id, rubric_id (null for all).
select audit_id, grader_id::varchar as grader_id, rubric_id::varchar as rubric_id, verdict, short, facts, recorded_at
from audit_verdicts
where ($grader_id::uuid is null or grader_id = $grader_id::uuid)
  and ($rubric_id::uuid is null or rubric_id = $rubric_id::uuid)
order by recorded_at desc, verdict_id;
