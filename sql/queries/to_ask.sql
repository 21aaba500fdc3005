-- The rows of a dataset version and whether a setup still has to ask about them: first occurrences only, in order. A row is
-- done once one of its replies was read; it is given up after two answers that could not be read, or when the row is too long or was
-- refused, unless retry is set. Parameters: version_id, setup_id, retry.
with replies_of as (
    select
        q.example_id,
        count(*) filter (where p.outcome = 'answered') as answers,
        bool_or(d.reading.score is not null) as scored,
        coalesce(bool_or(d.reading.reason in ('too_long', 'refused')), false) as final
    from questions q
    join replies p using (key)
    left join latest_readings d using (attempt_id, key, request_id)
    where q.setup_id = $setup_id
    group by q.example_id
),
firsts as (
    select example_id, min(position) as position
    from dataset_rows
    where version_id = $version_id
    group by example_id
)
select
    f.position,
    not coalesce(s.scored, false) and ($retry or (coalesce(s.answers, 0) < 2 and not coalesce(s.final, false))) as wanted
from firsts f
left join replies_of s using (example_id)
order by f.position;
