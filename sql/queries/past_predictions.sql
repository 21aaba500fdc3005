-- Internal.
-- How the estimates of a grader of that name have turned out, one row per run: what the next estimate is corrected by.
-- Parameters: task, grader (a name without its version), rubric_id (marks the runs by this very rubric), least
-- (answers of a run that counts).
select
    answers, usd_ratio, input_ratio, output_ratio, answer_usd, answer_usd_sd,
    rubric_id = $rubric_id::uuid as same_rubric
from predictions
where task = $task and grader_name = $grader and answers >= $least
order by started_at, run_id;
