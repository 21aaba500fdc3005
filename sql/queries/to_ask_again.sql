-- The rows that a run asked about once and whose answer could not be read: they are asked once more, in order. Parameters:
-- version_id, setup_id, run_id.
with replies_of as (
    select
        q.example_id,
        count(*) filter (where p.outcome = 'answered') as answers,
        bool_or(a.run_id = $run_id and p.outcome = 'answered') as in_this_run,
        bool_or(d.reading.score is not null) as scored,
        coalesce(bool_or(d.reading.reason in ('too_long', 'refused')), false) as final
    from questions q
    join replies p using (key)
    join attempts a using (attempt_id)
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
select f.position
from firsts f
join replies_of s using (example_id)
where s.in_this_run and not coalesce(s.scored, false) and not s.final and s.answers < 2
order by f.position;
