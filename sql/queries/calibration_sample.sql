-- Internal.
-- A stratified sample of the distinct rows of a dataset version that a grader has given a value: `keepers` of those at
-- its threshold or above and `others` of the rest, those whose draws, md5("calibrate SEED EXAMPLE_ID 1"), are the
-- smallest; with the reference's score where there is one, else its reason. With `referenced`, only of rows that have
-- such a score. Parameters: version_id, grader_id, rubric_id, by, threshold, reference_grader_id, reference_rubric_id,
-- referenced, seed, keepers, others.
with grades as materialized (  -- one pass over graded for both
    select example_id, grader_id, rubric_id, score, expected_score, reason
    from graded
    where (grader_id = $grader_id::uuid and rubric_id = $rubric_id::uuid)
       or (grader_id = $reference_grader_id::uuid and rubric_id = $reference_rubric_id::uuid)
),
cheap as (
    select example_id, case when $by = 'expected_score' then expected_score else score::double end as value
    from grades
    where grader_id = $grader_id::uuid and rubric_id = $rubric_id::uuid
),
reference as (
    select example_id, score, reason
    from grades
    where grader_id = $reference_grader_id::uuid and rubric_id = $reference_rubric_id::uuid
),
drawn as (
    select
        f.position, f.example_id, c.value, c.value >= $threshold::double as keeper, r.score, r.reason,
        row_number() over (
            partition by c.value >= $threshold::double
            order by md5(concat_ws(' ', 'calibrate', $seed::varchar, f.example_id::varchar, '1'))
        ) as place
    from first_positions f
    join cheap c using (example_id)
    left join reference r using (example_id)
    where f.version_id = $version_id::uuid and c.value is not null and (not $referenced or r.score is not null)
)
select
    d.position, d.value, d.keeper, length(e.output) as output_chars, d.score::double as reference_score,
    case when d.score is null then coalesce(d.reason, 'not_graded') end as reference_reason
from drawn d
join examples e using (example_id)
where d.place <= case when d.keeper then $keepers else $others end
order by d.position;
