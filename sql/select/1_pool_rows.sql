-- The rows that a selection chooses from, as the temporary table pool_rows: one row per row of a dataset version. score
-- is the figure that the condition is about, the score or the expected score, by one grader or of several together;
-- where there is none, reason says why. worth orders the rows, highest first, and draw those of equal worth; copy
-- counts rows of equal content. Parameters: version_id, graders and rubrics (lists of one length, empty for no
-- grades; the first gives the reasons), by, combine, kind, purpose, seed.
create temp table pool_rows as
with panel as (
    select
        unnest($graders::uuid[]) as grader_id, unnest($rubrics::uuid[]) as rubric_id,
        generate_subscripts($graders::uuid[], 1) as place
),
grades as (
    select
        g.example_id, p.place, g.score, g.reason,
        case when $by = 'expected_score' then g.expected_score else g.score::double end as figure
    from graded g
    join panel p using (grader_id, rubric_id)
    where list_contains($graders::uuid[], g.grader_id) and list_contains($rubrics::uuid[], g.rubric_id)
),
figures as (
    select
        example_id,
        count(figure) as figures,
        case $combine when 'median' then median(figure) when 'minimum' then min(figure) else avg(figure) end as figure,
        max(score) filter (where place = 1) as first_score,
        max(reason) filter (where place = 1) as first_reason
    from grades
    group by example_id
),
pool as (
    select
        r.position, r.example_id, coalesce(r.category, '(none)') as category, length(e.output) as output_chars,
        case when f.figures = len($graders::uuid[]) then f.figure end::decimal(18, 9) as score,
        case
            when f.figures = len($graders::uuid[]) then f.first_reason
            when len($graders::uuid[]) > 1 then 'not_graded_by_all'
            when f.first_score is not null then 'no_expected'
            else coalesce(f.first_reason, 'not_graded')
        end as reason,
        row_number() over (partition by r.example_id order by r.category nulls first, r.position) as copy
    from dataset_rows r
    join examples e using (example_id)
    left join figures f using (example_id)
    where r.version_id = $version_id::uuid
)
select
    position, example_id, category, score, reason,
    case $kind
        when 'random' then 0
        when 'longest' then output_chars
        when 'shortest' then -output_chars
        else score
    end::decimal(18, 9) as worth,
    copy,
    md5(concat_ws(' ', $purpose::varchar, $seed::varchar, example_id::varchar, copy::varchar)) as draw
from pool;
