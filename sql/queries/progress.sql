-- How far each grader is with each dataset: rows with a score, without one, and not asked about yet. Parameters: none.
select
    d.label as dataset, g.label as grader, b.label as rubric,
    sum(c.rows) filter (where c.score is not null)::bigint as scored,
    coalesce(sum(c.rows) filter (where c.score is null and c.reason <> 'not_graded'), 0)::bigint as no_score,
    coalesce(sum(c.rows) filter (where c.reason = 'not_graded'), 0)::bigint as not_graded
from score_counts c
join datasets d using (version_id)
join grader_labels g using (grader_id)
join rubric_labels b using (rubric_id)
group by all
order by dataset, grader, rubric;
