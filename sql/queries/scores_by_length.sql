-- Scores by length of the output: four buckets by the quartiles of its characters among the graded rows, shortest
-- first. Equal lengths share a bucket, so buckets need not be equally large. kept is score >= threshold, keep_rate its
-- share of the rows. Parameters: dataset, grader, rubric (labels, null for all), threshold (null for the rubric's
-- own), hidden (true: include hidden rubrics).
with asked as (
    select
        d.label as dataset, g.grader, g.rubric, g.score, t.output_chars,
        g.score >= coalesce($threshold::decimal(18, 6), b.threshold) as kept
    from dataset_rows r
    join datasets d using (version_id)
    join graded g using (example_id)
    join rubric_labels b using (rubric_id)
    join (select example_id, output_chars from example_traits) t using (example_id)
    where ($dataset is null or d.label = $dataset)
      and ($grader is null or g.grader = $grader)
      and (g.rubric = $rubric or ($rubric is null and (not b.hidden or coalesce($hidden::boolean, false))))
),
bounds as (
    select dataset, grader, rubric, quantile_disc(output_chars, [0.25, 0.5, 0.75]) as quartiles
    from asked
    group by all
),
placed as (
    select a.*, 1 + len(list_filter(q.quartiles, lambda bound: a.output_chars > bound)) as quartile
    from asked a
    join bounds q using (dataset, grader, rubric)
)
select
    dataset, grader, rubric, quartile,
    min(output_chars) as shortest_chars,
    max(output_chars) as longest_chars,
    count(*) as rows,
    count(score) as scored,
    count(*) filter (where kept) as kept,
    count(*) filter (where kept) / count(*) as keep_rate,
    avg(score) as mean_score
from placed
group by dataset, grader, rubric, quartile
order by dataset, grader, rubric, quartile;
