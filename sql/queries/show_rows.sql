-- Rows with their grades, in the order of the file. Parameters: dataset, grader, rubric, score, reason (each null for
-- any; hidden rubrics only where named), row_limit.
select dataset, position, category, instruction, input, output, grader, rubric, score, reason, explanation, model
from graded_rows
where ($dataset is null or dataset = $dataset)
  and ($grader is null or grader = $grader)
  and (rubric = $rubric or ($rubric is null and rubric_id not in (select rubric_id from rubric_labels where hidden)))
  and ($score::decimal(9, 3) is null or score = $score::decimal(9, 3))
  and ($reason is null or reason = $reason)
order by dataset, position, grader, rubric
limit coalesce($row_limit::bigint, 10);
