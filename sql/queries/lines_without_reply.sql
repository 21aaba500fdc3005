-- Internal.
-- How many lines of an attempt have no reply yet, 0 once it is closed. Parameters: attempt.
select count(*) as lines
from open_attempts o
join attempt_lines l using (attempt_id)
where o.attempt_id = $attempt::uuid
  and not exists (select 1 from replies p where p.attempt_id = l.attempt_id and p.key = l.key);
