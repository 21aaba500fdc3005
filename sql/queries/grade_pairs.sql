-- Internal.
-- Two graders' grades of the distinct rows of a dataset version, counted: one row for each pair of values, length of
-- the output in characters and reasons there are. value_a is A's score or, with by = expected_score, its expected score
-- cut to the thousandth. Where one of the two has no value, value_a, value_b and output_chars are null and the reasons
-- say why (null for the one that has a value, not_graded where nobody has graded it).
-- Parameters: version_id, grader_a, rubric_a, by, grader_b, rubric_b.
with grades as materialized (  -- one pass over graded for both
    select example_id, grader_id, rubric_id, score, expected_score, reason
    from graded
    where (grader_id = $grader_a::uuid and rubric_id = $rubric_a::uuid)
       or (grader_id = $grader_b::uuid and rubric_id = $rubric_b::uuid)
),
a as (
    select
        example_id,
        case when $by = 'expected_score' then floor(expected_score * 1000) / 1000 else score::double end as value,
        case when score is not null then 'no_expected' else reason end as reason
    from grades
    where grader_id = $grader_a::uuid and rubric_id = $rubric_a::uuid
),
b as (
    select example_id, score::double as value, reason
    from grades
    where grader_id = $grader_b::uuid and rubric_id = $rubric_b::uuid
),
pairs as (
    select
        a.value is not null and b.value is not null as compared,
        case when compared then a.value end as value_a,
        case when compared then b.value end as value_b,
        case when compared then length(e.output) end as output_chars,
        case when a.value is null then coalesce(a.reason, 'not_graded') end as reason_a,
        case when b.value is null then coalesce(b.reason, 'not_graded') end as reason_b
    from first_positions f
    join examples e using (example_id)
    left join a using (example_id)
    left join b using (example_id)
    where f.version_id = $version_id::uuid
)
select value_a, value_b, output_chars, reason_a, reason_b, count(*)::bigint as examples
from pairs
group by value_a, value_b, output_chars, reason_a, reason_b
order by value_a, value_b, output_chars, reason_a, reason_b;
