-- The score distribution: rows by dataset, grader, rubric, score and reason, highest score first. cumulative_share is the
-- share of the rows asked about that this score as a threshold would keep; null for rows without a score. Parameters: dataset, grader, rubric
-- (null for all).
with counts as (
    select d.label as dataset, g.label as grader, b.label as rubric, c.score, c.reason, c.rows
    from score_counts c
    join datasets d using (version_id)
    join grader_labels g using (grader_id)
    join rubric_labels b using (rubric_id)
    where ($dataset is null or d.label = $dataset)
      and ($grader is null or g.label = $grader)
      and ($rubric is null or b.label = $rubric)
)
select
    dataset, grader, rubric, score, reason, rows,
    case when score is not null then
        sum(rows) filter (where score is not null) over (partition by dataset, grader, rubric order by score desc nulls last range between unbounded preceding and current row)
        / sum(rows) filter (where reason is distinct from 'not_graded') over (partition by dataset, grader, rubric)
    end::double as cumulative_share
from counts
order by dataset, grader, rubric, score desc nulls last, rows desc, reason;
