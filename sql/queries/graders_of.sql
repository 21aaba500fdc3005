-- Internal.
-- The graders and rubrics that have graded rows of a dataset version, most rows first. graded counts rows with a
-- reply, scored those whose reply held a score. observed_step is the widest step, counted from the low end of the
-- scale, on which all scores given there lie: 1 for a grader that only answers whole numbers; null below two distinct
-- scores. Parameters: version_id.
with scored as (
    select c.grader_id, c.rubric_id, c.score, sum(c.rows) as rows
    from score_counts c
    where c.version_id = $version_id::uuid and c.reason is distinct from 'not_graded'
    group by all
),
counted as (
    select
        s.grader_id, s.rubric_id,
        sum(s.rows)::bigint as graded,
        coalesce(sum(s.rows) filter (where s.score is not null), 0)::bigint as scored,
        max(s.score) as highest,
        count(distinct s.score) as distinct_scores,
        list(distinct ((s.score - b.scale_low) * 1000)::bigint) filter (where s.score is not null) as thousandths
    from scored s
    join rubric_labels b using (rubric_id)
    group by all
)
select
    g.label as grader, b.label as rubric, c.graded, c.scored, c.highest,
    b.threshold, b.scale_low, b.scale_high, b.scale_step,
    case when c.distinct_scores > 1
        then (list_reduce(c.thousandths, lambda x, y: gcd(x, y))::decimal(18, 3) / 1000)::decimal(9, 3)
    end as observed_step,
    g.name as grader_name, g.version as grader_version, b.name as rubric_name, b.version as rubric_version,
    g.fingerprint, b.content as rubric_content, c.grader_id, c.rubric_id
from counted c
join grader_labels g using (grader_id)
join rubric_labels b using (rubric_id)
order by c.graded desc, grader, rubric;
