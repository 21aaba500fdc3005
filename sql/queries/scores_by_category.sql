-- Scores by category: graded rows, those with a score, those kept at the threshold (score >=
-- threshold) and their share of the rows, largest category first. Parameters: dataset, grader, rubric (labels, null
-- for all), threshold (null for the rubric's own), hidden (true: include hidden rubrics).
select
    d.label as dataset, g.grader, g.rubric,
    coalesce(r.category, '(none)') as category,
    count(*) as rows,
    count(g.score) as scored,
    count(*) filter (where g.score >= coalesce($threshold::decimal(18, 6), b.threshold)) as kept,
    count(*) filter (where g.score >= coalesce($threshold::decimal(18, 6), b.threshold)) / count(*) as keep_rate,
    avg(g.score) as mean_score
from dataset_rows r
join datasets d using (version_id)
join graded g using (example_id)
join rubric_labels b using (rubric_id)
where ($dataset is null or d.label = $dataset)
  and ($grader is null or g.grader = $grader)
  and (g.rubric = $rubric or ($rubric is null and (not b.hidden or coalesce($hidden::boolean, false))))
group by d.label, g.grader, g.rubric, coalesce(r.category, '(none)')
order by dataset, grader, rubric, rows desc, category;
