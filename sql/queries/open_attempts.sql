-- What was opened and not closed: work still out, or left by a process that died (the next run closes it). Parameters: none.
select attempt_id, backend, state, lines, ceiling_usd, opened_at from open_attempts order by opened_at, attempt_id;
