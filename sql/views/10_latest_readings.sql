-- One row a reply: its newest reading, should a better parser have read it again.
create or replace view latest_readings as
with newest as (
    select max(reader::integer) as reader from readings
)
select
    attempt_id, key, request_id,
    {'score': score, 'expected': expected, 'reason': reason, 'explanation': explanation} as reading
from readings
where reader::integer = (select reader from newest)
union all
select  -- what the newest parser has not read: nothing, as a rule
    o.attempt_id, o.key, o.request_id,
    arg_max({'score': o.score, 'expected': o.expected, 'reason': o.reason, 'explanation': o.explanation}, o.reader::integer)
from readings o
where o.reader::integer < (select reader from newest)
  and not exists (
      from readings n
      where n.reader::integer = (select reader from newest)
        and n.attempt_id = o.attempt_id and n.key = o.key and n.request_id = o.request_id
  )
group by o.attempt_id, o.key, o.request_id;
