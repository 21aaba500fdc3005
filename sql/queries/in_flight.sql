-- Internal.
-- What outlives its process and is not closed, of one grader and setup: a row for the intent and one for each step
-- after it, with the newest state and that step's facts, in order. Parameters: grader_id, setup_id.
select o.attempt_id, o.state, f.facts
from open_attempts o
join runs r using (run_id)
join (
    select attempt_id, 0 as step, facts from attempts
    union all
    select attempt_id, step, facts from attempt_steps
) f using (attempt_id)
where o.outlives and o.grader_id = $grader_id and r.setup_id = $setup_id
order by o.opened_at, o.attempt_id, f.step;
