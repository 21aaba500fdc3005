-- Alarms that no person has acknowledged yet; while there is one, nothing that costs money is sent. Parameters: none.
select alarm_id, kind, usd, note, recorded_at from open_alarms order by alarm_id;
