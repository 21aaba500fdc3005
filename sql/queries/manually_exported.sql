-- Internal.
-- The attempts that exported some of these questions to be carried manually, the likeliest first. Parameters: keys
-- (texts).
select b.attempt_id, b.closed, b.facts, count(*) as lines
from batches b
join attempt_lines l using (attempt_id)
where b.kind = 'by_hand' and l.key in (select try_cast(k as uuid) from (select unnest($keys::varchar[]) as k))
group by all
order by b.closed, lines desc, b.attempt_id;
