-- The entries of the ledger, newest last; act_id is the settlement or reversal that made an entry, reverses the entry
-- that it reverses. Parameters: attempt (a prefix of its id), row_limit (100).
with newest as (
    select l.rowid as place, l.*, a.act_id, a.reverses
    from ledger l
    left join ledger_acts a using (entry_id)
    where $attempt is null or starts_with(l.attempt_id::varchar, $attempt::varchar)
    order by l.rowid desc
    limit coalesce($row_limit::bigint, 100)
)
select
    recorded_at, kind, reserved_usd, spent_usd, unresolved_usd, note, entry_id, act_id, reverses, run_id, attempt_id,
    key,
    request_id
from newest
order by place;
