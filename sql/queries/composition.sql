-- Internal.
-- What was kept, compared with the pool: rows, rows with an input, the median length of the output in
-- characters (the lower of two middle ones), rows about code (see example_traits), and rows of the 20 largest
-- categories, the rest as one. Shares are of the pool's and of the kept rows; keep_rate is kept / pool. Kept are the
-- rows of a selection, or, with selection_id null, the rows that a grader scored at threshold or above. Parameters:
-- version_id, selection_id, grader_id, rubric_id, threshold.
with chosen as (
    select position from selection_rows where selection_id = $selection_id::uuid
    union all
    select r.position
    from dataset_rows r
    join graded g using (example_id)
    where $selection_id is null
      and r.version_id = $version_id::uuid
      and g.grader_id = $grader_id::uuid and g.rubric_id = $rubric_id::uuid
      and g.score >= $threshold::decimal(18, 6)
),
pool as (
    select
        coalesce(r.category, '(none)') as category, t.with_input, t.output_chars, t.code,
        r.position in (select position from chosen) as kept
    from dataset_rows r
    join example_traits t using (example_id)
    where r.version_id = $version_id::uuid
),
totals as (
    select
        count(*) as pool, count(*) filter (where kept) as kept,
        count(*) filter (where with_input) as pool_input, count(*) filter (where with_input and kept) as kept_input,
        count(*) filter (where code) as pool_code, count(*) filter (where code and kept) as kept_code,
        quantile_disc(output_chars, 0.5) as pool_median,
        quantile_disc(output_chars, 0.5) filter (where kept) as kept_median
    from pool
),
ranked as (
    select category, count(*) as pool, count(*) filter (where kept) as kept,
           row_number() over (order by count(*) desc, category) as place
    from pool
    group by category
),
categories as (
    select
        case when place <= 20 then category else '(all others)' end as category,
        least(place, 21) as place, sum(pool)::bigint as pool, sum(kept)::bigint as kept
    from ranked
    group by all
),
measured as (
    select 1 as line, 'rows' as measure, null as category, pool, kept, true as counts from totals
    union all select 2, 'with_input', null, pool_input, kept_input, true from totals
    union all select 3, 'median_output_chars', null, pool_median, kept_median, false from totals
    union all select 4, 'code', null, pool_code, kept_code, true from totals
    union all select 4 + place, 'category', category, pool, kept, true from categories
)
select
    m.measure, m.category,
    m.pool, case when m.counts then m.pool / nullif(t.pool, 0) end as pool_share,
    m.kept, case when m.counts then m.kept / nullif(t.kept, 0) end as kept_share,
    case when m.counts then m.kept / nullif(m.pool, 0) end as keep_rate
from measured m, totals t
order by m.line;
