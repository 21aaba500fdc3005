-- Predicted and actual figures of each run, newest first. Tokens are per answer; a ratio is actual /
-- predicted. Parameters: grader, rubric, run_id (null for all).
select
    started_at, command, dataset, grader, rubric, requests, answers, predicted_usd, expected_usd, usd, usd_ratio,
    predicted_input_tokens, input_tokens, input_ratio, predicted_output_tokens, output_tokens, output_ratio,
    predicted_seconds, seconds
from predictions
where ($grader is null or grader = $grader)
  and ($rubric is null or rubric = $rubric)
  and ($run_id is null or run_id = $run_id::uuid)
order by started_at desc, run_id;
