-- Progress of each grader on each dataset: rows with a score, without a score, in flight in a batch, and not
-- graded. Parameters: none.
with flying as (
    select distinct s.grader_id, s.rubric_id, f.subject_id as example_id
    from questions_in_flight f
    join setups s using (setup_id)
),
out as (
    select r.version_id, f.grader_id, f.rubric_id, count(*)::bigint as rows
    from flying f
    join dataset_rows r using (example_id)
    left join graded g using (example_id, grader_id, rubric_id)
    where g.example_id is null
    group by all
)
select
    d.label as dataset, g.label as grader, b.label as rubric,
    sum(c.rows) filter (where c.score is not null)::bigint as scored,
    coalesce(sum(c.rows) filter (where c.score is null and c.reason <> 'not_graded'), 0)::bigint as no_score,
    coalesce(any_value(o.rows), 0)::bigint as in_flight,
    (coalesce(sum(c.rows) filter (where c.reason = 'not_graded'), 0) - coalesce(any_value(o.rows), 0))::bigint
        as not_graded
from score_counts c
join datasets d using (version_id)
join grader_labels g using (grader_id)
join rubric_labels b using (rubric_id)
left join out o using (version_id, grader_id, rubric_id)
group by d.label, g.label, b.label
order by dataset, grader, rubric;
