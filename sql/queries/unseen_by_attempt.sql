-- Internal.
-- What may explain that a provider counts more than our replies do, one row per attempt: its unresolved dollars, and
-- those that were booked without a reply: settled by a person, or charged as a whole. Parameters: none.
select
    l.attempt_id, l.run_id, a.opened_at::date as day, a.model, a.by_batch as batch,
    sum(l.unresolved_usd)::decimal(38, 15) as unresolved_usd,
    coalesce(sum(l.spent_usd) filter (where l.without_reply and not l.by_fork), 0)::decimal(38, 15) as settled_usd
from account_lines l
join paid_attempts a using (attempt_id)
where not l.inherited
group by all
having unresolved_usd <> 0 or settled_usd <> 0
order by day, l.attempt_id;
