-- One row a setup x example x sample that has been asked about: how many answers there are or may be, whether one could be read (scored),
-- whether asking again is of no use (final: too long, refused), and when the newest reply came, how it ended and its reason.
create or replace view asked as
select
    q.setup_id,
    q.example_id,
    q.sample,
    count(*) filter (where p.outcome in ('answered', 'unknown')) as answers,
    coalesce(bool_or(d.reading.score is not null), false) as scored,
    coalesce(bool_or(d.reading.reason in ('too_long', 'refused')), false) as final,
    max(p.recorded_at) as newest_at,
    arg_max(p.outcome, {'recorded_at': p.recorded_at, 'request_id': p.request_id}) as newest_outcome,
    split_part(arg_max(coalesce(p.error, ''), {'recorded_at': p.recorded_at, 'request_id': p.request_id}), ':', 1) as newest_reason
from questions q
join replies p using (key)
left join latest_readings d using (attempt_id, key, request_id)
group by q.setup_id, q.example_id, q.sample;

-- One row a distinct example of a dataset version: the position where it stands first.
create or replace view first_positions as
select version_id, example_id, min(position) as position
from dataset_rows
group by version_id, example_id;

-- One row a question that is out: it stands in an attempt that outlives its process, is not closed, and is not in doubt.
create or replace view questions_out as
select q.setup_id, q.example_id, q.sample, q.key, o.attempt_id
from open_attempts o
join attempt_lines l using (attempt_id)
join questions q using (key)
where o.outlives and o.state <> 'doubted';
