-- One row a setup x example that has been asked about: how many answers there are or may be, whether one could be read (scored),
-- whether asking again is of no use (final: too long, refused), and the attempt of the newest answer.
create or replace view asked as
select
    q.setup_id,
    q.example_id,
    count(*) filter (where p.outcome in ('answered', 'unknown')) as answers,
    coalesce(bool_or(d.reading.score is not null), false) as scored,
    coalesce(bool_or(d.reading.reason in ('too_long', 'refused')), false) as final,
    arg_max(p.attempt_id, {'recorded_at': p.recorded_at, 'request_id': p.request_id})
        filter (where p.outcome = 'answered') as last_attempt
from questions q
join replies p using (key)
left join latest_readings d using (attempt_id, key, request_id)
group by q.setup_id, q.example_id;

-- One row a distinct example of a dataset version: the position where it stands first.
create or replace view first_positions as
select version_id, example_id, min(position) as position
from dataset_rows
group by version_id, example_id;
