-- Scores by coding keyword (AlpaGasus's set; the counting rule is in example_traits): one row per keyword, then `code`,
-- the rows with at least one of them, and `other`, the rows with none. A row with two keywords counts under both; code
-- + other is every graded row. kept is score >= threshold, keep_rate its share of the rows. Parameters: dataset,
-- grader, rubric (labels, null for all), threshold (null for the rubric's own), hidden (true: include hidden
-- rubrics).
with asked as (
    select
        d.label as dataset, g.grader, g.rubric, g.score,
        g.score >= coalesce($threshold::decimal(18, 6), b.threshold) as kept,
        t.java, t.cpp, t.csharp, t.python, t.code
    from dataset_rows r
    join datasets d using (version_id)
    join graded g using (example_id)
    join rubric_labels b using (rubric_id)
    join example_traits t using (example_id)
    where ($dataset is null or d.label = $dataset)
      and ($grader is null or g.grader = $grader)
      and (g.rubric = $rubric or ($rubric is null and (not b.hidden or coalesce($hidden::boolean, false))))
),
placed as (
    select 1 as line, 'Java' as keyword, dataset, grader, rubric, score, kept from asked where java
    union all select 2, 'C++', dataset, grader, rubric, score, kept from asked where cpp
    union all select 3, 'C#', dataset, grader, rubric, score, kept from asked where csharp
    union all select 4, 'Python', dataset, grader, rubric, score, kept from asked where python
    union all select 5, 'code', dataset, grader, rubric, score, kept from asked where code
    union all select 6, 'other', dataset, grader, rubric, score, kept from asked where not code
)
select
    dataset, grader, rubric, keyword,
    count(*) as rows,
    count(score) as scored,
    count(*) filter (where kept) as kept,
    count(*) filter (where kept) / count(*) as keep_rate,
    avg(score) as mean_score
from placed
group by dataset, grader, rubric, line, keyword
order by dataset, grader, rubric, line;
