-- Alarms that are not acknowledged yet; while one is open, nothing that costs money is sent. Parameters: none.
select alarm_id, kind, usd, note, recorded_at from open_alarms order by alarm_id;
