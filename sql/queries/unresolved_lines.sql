-- Internal.
-- The lines of some attempts that have unresolved dollars. Parameters: attempts (texts).
select run_id, attempt_id, key, sum(unresolved_usd)::decimal(38, 15) as unresolved_usd
from ledger
where attempt_id in (select try_cast(a as uuid) from (select unnest($attempts::varchar[]) as a))
group by run_id, attempt_id, key
having sum(unresolved_usd) <> 0
order by attempt_id, key;
