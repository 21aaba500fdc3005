-- The batches in flight, with $all also those that ended, newest first: phase, counts, age, expiry, money.
-- Parameters: all.
select
    attempt_id, batch_id, grader, rubric, dataset, phase, lines, completed, failed,
    round(epoch(now() at time zone 'UTC' - opened_at) / 3600, 4) as age_hours, opened_at, expires_at, seen_at,
    reserved_usd, spent_usd, unresolved_usd, message
from batches
where not closed or coalesce($all::boolean, false)
order by opened_at desc, attempt_id;
