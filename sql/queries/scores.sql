-- The score distribution: rows by dataset, grader, rubric, score and reason, highest score first. cumulative_share is
-- the share of the graded rows that this score as a threshold would keep; null for rows without a score. deciles are
-- the same for all lines of one grader, rubric and dataset: nine scores, at or below which a tenth, two tenths and so on
-- up to nine tenths of the scored rows lie; null where no row has a score. Parameters: dataset, grader, rubric (null for
-- all), hidden (true: include hidden rubrics).
with counts as (
    select d.label as dataset, g.label as grader, b.label as rubric, c.score, c.reason, c.rows
    from score_counts c
    join dataset_labels d using (version_id)
    join grader_labels g using (grader_id)
    join rubric_labels b using (rubric_id)
    where (d.label = $dataset or ($dataset is null and not d.of_audit))
      and ($grader is null or g.label = $grader)
      and (b.label = $rubric or ($rubric is null and (not b.hidden or coalesce($hidden::boolean, false))))
),
ascending as (
    select
        dataset, grader, rubric, score,
        sum(rows) over (
            partition by dataset, grader, rubric order by score range between unbounded preceding and current row
        ) as at_most,
        sum(rows) over (partition by dataset, grader, rubric) as scored
    from counts
    where score is not null
),
tenths as (
    select dataset, grader, rubric, tenth, min(score)::double as score
    from ascending, range(1, 10) as tenths(tenth)
    where 10 * at_most >= tenth * scored
    group by all
),
deciles as (
    select dataset, grader, rubric, list(score order by tenth) as deciles
    from tenths
    group by all
)
select
    dataset, grader, rubric, score, reason, rows,
    case when score is not null then
        sum(rows) filter (where score is not null)
            over (
                partition by dataset, grader, rubric
                order by score desc nulls last
                range between unbounded preceding and current row
            )
        / sum(rows) filter (where reason is distinct from 'not_graded') over (partition by dataset, grader, rubric)
    end::double as cumulative_share,
    deciles
from counts
left join deciles using (dataset, grader, rubric)
order by dataset, grader, rubric, score desc nulls last, rows desc, reason;
