-- Internal.
-- One row per line of an attempt that may cost money: its ceiling, what of it is still held, what is unresolved and what
-- was spent. Lines that can cost nothing are not here.
create or replace view line_money as
with moved as (
    select attempt_id, key, sum(reserved_usd) as reserved_usd, sum(unresolved_usd) as unresolved_usd,
        sum(spent_usd) as spent_usd
    from ledger
    where key is not null
    group by attempt_id, key
)
select
    l.attempt_id,
    l.key,
    l.ceiling_usd,
    (l.ceiling_usd + coalesce(m.reserved_usd, 0))::decimal(38, 15) as held_usd,
    coalesce(m.unresolved_usd, 0)::decimal(38, 15) as unresolved_usd,
    coalesce(m.spent_usd, 0)::decimal(38, 15) as spent_usd
from attempt_lines l
left join moved m using (attempt_id, key)
where l.ceiling_usd > 0;
