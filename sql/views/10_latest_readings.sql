-- Internal.
-- One row per reply: its newest reading, should a better parser have read it again. The newest parser is the newest of
-- its task. reading.usable tells whether the reply answers its question, reading.value what was read beside a score,
-- as JSON.
create or replace view latest_readings as
with newest as (
    select task, max(reader::integer) as reader from readings group by task
)
select
    r.attempt_id, r.key, r.request_id,
    {'usable': coalesce(r.usable, r.score is not null), 'score': r.score, 'expected_score': r.expected,
     'reason': r.reason,
     'explanation': r.explanation, 'value': r.value} as reading
from readings r
join newest n on n.task = r.task and n.reader = r.reader::integer
union all
select  -- what the newest parser has not read: nothing, as a rule
    o.attempt_id, o.key, o.request_id,
    arg_max(
        {'usable': coalesce(o.usable, o.score is not null), 'score': o.score, 'expected_score': o.expected,
         'reason': o.reason,
         'explanation': o.explanation, 'value': o.value},
        o.reader::integer
    )
from readings o
join newest n on n.task = o.task and n.reader > o.reader::integer
where not exists (
    from readings r
    where r.attempt_id = o.attempt_id and r.key = o.key and r.request_id = o.request_id and r.reader::integer = n.reader
)
group by o.attempt_id, o.key, o.request_id;
