-- The scored rows in ten equal parts by score, lowest first: lowest, mean and highest score, rows, and median output length of
-- each. Rows with the same score may fall into several parts. Parameters: dataset, grader, rubric
-- (null for all).
with parts as (
    select
        dataset, grader, rubric, score, length(output) as output_chars,
        ntile(10) over (partition by dataset, grader, rubric order by score, position) as decile
    from graded_rows
    where score is not null
      and ($dataset is null or dataset = $dataset)
      and ($grader is null or grader = $grader)
      and ($rubric is null or rubric = $rubric)
)
select
    dataset, grader, rubric, decile, min(score) as lowest, avg(score) as mean, max(score) as highest, count(*) as rows,
    quantile_disc(output_chars, 0.5) as median_output_chars
from parts
group by all
order by dataset, grader, rubric, decile;
