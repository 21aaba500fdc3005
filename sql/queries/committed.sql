-- Internal.
-- All that stands in the three accounts, by where it stands: what lines hold and leave unresolved, and what attempts
-- have spent. Parameters: none.
with lines as (
    select a.run_id, l.attempt_id, l.key, l.held_usd as reserved_usd, l.unresolved_usd
    from line_money l
    join attempts a using (attempt_id)
    where l.held_usd <> 0 or l.unresolved_usd <> 0
),
totals as (
    select
        run_id, attempt_id, sum(reserved_usd) as reserved_usd, sum(unresolved_usd) as unresolved_usd,
        sum(spent_usd) as spent_usd
    from ledger
    group by run_id, attempt_id
),
named as (
    select run_id, attempt_id, sum(reserved_usd) as reserved_usd, sum(unresolved_usd) as unresolved_usd
    from lines
    group by run_id, attempt_id
)
select run_id, attempt_id, key, reserved_usd, unresolved_usd, 0::decimal(38, 15) as spent_usd from lines
union all
select
    t.run_id, t.attempt_id, null,
    (t.reserved_usd - coalesce(n.reserved_usd, 0))::decimal(38, 15),
    (t.unresolved_usd - coalesce(n.unresolved_usd, 0))::decimal(38, 15),
    t.spent_usd::decimal(38, 15)
from totals t
left join named n on n.attempt_id = t.attempt_id and n.run_id is not distinct from t.run_id
where t.spent_usd <> 0 or t.reserved_usd <> coalesce(n.reserved_usd, 0)
    or t.unresolved_usd <> coalesce(n.unresolved_usd, 0)
order by attempt_id, key;
