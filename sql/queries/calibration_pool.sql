-- Internal.
-- The distinct rows of a dataset version by the value that a grader gave them, its score or, with by =
-- expected_score, its expected score (null with the reason where there is none): how many examples, how many rows of
-- the file, and how many of the examples a reference has given a score. Parameters: version_id, grader_id, rubric_id,
-- by, reference_grader_id, reference_rubric_id.
with grades as materialized (  -- one pass over graded for both
    select example_id, grader_id, rubric_id, score, expected_score, reason
    from graded
    where (grader_id = $grader_id::uuid and rubric_id = $rubric_id::uuid)
       or (grader_id = $reference_grader_id::uuid and rubric_id = $reference_rubric_id::uuid)
),
pool as (
    select example_id, count(*) as copies from dataset_rows where version_id = $version_id::uuid group by example_id
),
cheap as (
    select
        example_id,
        case when $by = 'expected_score' then expected_score else score::double end as value,
        case when score is not null then 'no_expected' else reason end as reason
    from grades
    where grader_id = $grader_id::uuid and rubric_id = $rubric_id::uuid
),
reference as (
    select example_id
    from grades
    where grader_id = $reference_grader_id::uuid and rubric_id = $reference_rubric_id::uuid and score is not null
)
select
    c.value, case when c.value is null then coalesce(c.reason, 'not_graded') end as reason,
    count(*)::bigint as examples, sum(p.copies)::bigint as rows, count(r.example_id)::bigint as referenced
from pool p
left join cheap c using (example_id)
left join reference r using (example_id)
group by 1, 2
order by 1, 2;
