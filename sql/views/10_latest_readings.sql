-- One row a reply: its newest reading, should a better parser have read it again.
create or replace view latest_readings as
select
    attempt_id, key, request_id,
    arg_max({'score': score, 'expected': expected, 'reason': reason, 'explanation': explanation},
        {'reader': reader::integer, 'recorded_at': recorded_at}) as reading
from readings
group by attempt_id, key, request_id;
