-- The newest runs, one row each. A run without an end is the last one: it is still running, or its process crashed.
-- Parameters: row_limit.
select started_at, command, dataset, grader, rubric, pid, coalesce(outcome, 'running or crashed') as outcome, seconds,
    replied, usable, spent_usd, unresolved_usd, message
from run_list
order by started_at desc, run_id
limit coalesce($row_limit::bigint, 20);
