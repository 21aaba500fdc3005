-- Internal.
-- What was opened and not closed: attempts in flight, or left by a process that crashed (the next run closes it).
-- Parameters: none.
select attempt_id, backend, state, lines, ceiling_usd, opened_at from open_attempts order by opened_at, attempt_id;
