-- Requests sent without a result, one row per attempt, oldest first; settle them with `alpasift ledger settle`.
-- Parameters: none.
select attempt_id, run_id, batch_id, backend, model, open, lines, unresolved_usd, since, why
from unresolved_attempts
order by since, attempt_id;
