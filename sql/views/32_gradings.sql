-- One row per dataset, grader and rubric: distinct examples graded and scored, mean and median score, mean expected score, how
-- many reach the rubric's threshold and their share, and the cost of all replies.
create or replace view gradings as
with asked as (
    select distinct version_id, example_id from dataset_rows
)
select
    d.label as dataset, g.grader, g.rubric,
    count(*) as graded,
    count(g.score) as scored,
    avg(g.score) as mean_score,
    median(g.score) as median_score,
    avg(g.expected_score) as mean_expected_score,
    b.threshold,
    count(*) filter (where g.score >= b.threshold) as kept,
    count(*) filter (where g.score >= b.threshold) / count(*) as kept_share,
    sum(g.usd)::decimal(38, 15) as usd,
    a.version_id, g.grader_id, g.rubric_id
from asked a
join datasets d using (version_id)
join graded g using (example_id)
join rubric_labels b using (rubric_id)
group by all;
