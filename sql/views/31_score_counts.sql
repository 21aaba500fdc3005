-- One row per dataset, grader, rubric, score and reason: the number of rows. Rows that the grader has not graded
-- have the reason not_graded.
create or replace view score_counts as
with counted as (
    select r.version_id, g.grader_id, g.rubric_id, g.score, g.reason, count(*) as rows
    from dataset_rows r
    join graded g using (example_id)
    group by all
),
asked as (
    select version_id, grader_id, rubric_id, sum(rows) as rows from counted group by all
)
select version_id, grader_id, rubric_id, score, reason, rows::bigint as rows from counted
union all by name
select a.version_id, a.grader_id, a.rubric_id, null as score, 'not_graded' as reason, (d.rows - a.rows)::bigint as rows
from asked a
join dataset_labels d using (version_id)
where d.rows > a.rows;
