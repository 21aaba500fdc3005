-- The newest runs, one row each. A run without an end is the last one: it goes on, or its process died. Parameters: row_limit.
select started_at, command, dataset, grader, rubric, pid, coalesce(outcome, 'running or died') as outcome, seconds, replied, scored, spent_usd, unresolved_usd, message
from run_list
order by started_at desc, run_id
limit coalesce($row_limit::bigint, 20);
