-- Internal.
-- The entries that a name stands for, be it an entry's own or that of the settlement or reversal that made it: whether
-- each was taken back, and whether it belongs to the ledger that this one was forked from. Parameters: name (a
-- beginning of an id).
with named as (
    select entry_id, entry_id as name from ledger where starts_with(entry_id::varchar, $name)
    union all
    select entry_id, act_id from ledger_acts where starts_with(act_id::varchar, $name)
)
select
    n.name, l.entry_id, l.kind, l.run_id, l.attempt_id, l.key, l.spent_usd, l.unresolved_usd,
    exists (select 1 from ledger_acts r where r.reverses = l.entry_id) as taken_back,
    coalesce(a.inherited, false) as inherited
from named n
join ledger l using (entry_id)
left join paid_attempts a on a.attempt_id = l.attempt_id
order by n.name, l.recorded_at, l.entry_id;
