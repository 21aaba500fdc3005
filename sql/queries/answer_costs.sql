-- Cost of an answer by task, grader, rubric and model: answers, mean input and output tokens, dollars in total and per 1,000
-- answers, most expensive first. Only answers with a known usage. Parameters: grader (null for all).
select
    task, grader, rubric, model, count(*) as answers, avg(input_tokens) as mean_input_tokens,
    avg(output_tokens) as mean_output_tokens, sum(usd)::decimal(38, 15) as usd,
    (1000 * sum(usd) / count(*))::decimal(38, 15) as per_thousand_usd
from answer_costs
where $grader is null or grader = $grader
group by all
order by sum(usd) desc, answers desc, task, grader, rubric, model;
