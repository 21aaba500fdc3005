-- One row per dataset x grader x rubric: how much the scores tell the rows apart. entropy_bits is the Shannon entropy of
-- the scores: 0 where all rows share one, 1 where two scores halve them. degenerate says that they tell next to
-- nothing: of 20 scored rows or more, more than 80 % share one score of three or more that there are, or the entropy
-- is below half a bit. Grades by the rubric rules, where most rows have no flaw, and grades made elsewhere (labels) are
-- never degenerate.
create or replace view score_entropy as
with by_score as (
    select version_id, grader_id, rubric_id, score, sum(rows) as rows
    from score_counts
    where score is not null
    group by all
),
shares as (
    select *, rows / sum(rows) over (partition by version_id, grader_id, rubric_id) as share from by_score
),
counted as (
    select
        version_id, grader_id, rubric_id,
        sum(rows)::bigint as scored,
        count(*) as distinct_scores,
        arg_max(score, {'rows': rows, 'score': score}) as commonest_score,
        max(rows)::bigint as commonest_rows,
        max(share)::double as commonest_share,
        greatest(0, -sum(share * log2(share)))::double as entropy_bits
    from shares
    group by all
)
select
    d.label as dataset, g.label as grader, b.label as rubric,
    c.scored, c.distinct_scores, c.commonest_score, c.commonest_rows, c.commonest_share, c.entropy_bits,
    c.scored >= 20
        and (c.entropy_bits < 0.5 or (c.commonest_share > 0.8 and b.scale_high - b.scale_low > b.scale_step))
        and b.name <> 'rules' and g.name not like 'labels:%' as degenerate,
    c.version_id, c.grader_id, c.rubric_id
from counted c
join datasets d using (version_id)
join grader_labels g using (grader_id)
join rubric_labels b using (rubric_id);
