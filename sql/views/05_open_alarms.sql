-- One row per alarm that is not acknowledged yet: while one is open, nothing that costs money is sent.
create or replace view open_alarms as
select alarm_id, kind, attempt_id, usd, note, recorded_at
from alarms
where kind <> 'acknowledged'
  and alarm_id > coalesce((select max(alarm_id) from alarms where kind = 'acknowledged'), 0);
