-- The rows of pool_rows with the reason why each is not kept, null for a row that is, as the temporary table
-- marked_rows. A row is judged by the condition, then by its category's quota, then by its place among what is left.
-- where_true and where_unknown hold the positions for which the user's expression is true, and null. Parameters:
-- kind, min_score, below, categories and most (the quotas), most_of_others, size (how many rows to count off, null for all).
create temp table marked_rows as
with judged as (
    select *, case
        when $kind = 'where' and position in (select position from where_true) then null
        when $kind = 'where' and position in (select position from where_unknown) then 'where_null'
        when $kind = 'where' then 'where_false'
        when $kind in ('random', 'longest', 'shortest') then null
        when score is null then reason
        when score < $min_score then 'below_threshold'
        when score >= $below then 'not_below'
    end as why
    from pool_rows
),
quotas as (
    select unnest($categories::varchar[]) as category, unnest($most::bigint[]) as most
),
within_quota as (
    select j.* exclude (why), case
        when j.why is null
            and row_number() over (
                partition by j.why is null, j.category order by j.worth desc nulls last, j.draw
            ) > coalesce(q.most, $most_of_others::bigint)
        then 'over_quota'
        else j.why
    end as why
    from judged j
    left join quotas q using (category)
),
placed as (
    select *, row_number() over (partition by why is null order by worth desc nulls last, draw) as place
    from within_quota
)
select
    position, example_id, copy, score, worth,
    case when why is null and place > $size::bigint then 'not_drawn' else why end as why
from placed;
