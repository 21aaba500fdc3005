-- Internal.
-- The subjects at some positions of a list, in order. Parameters: list_id, low, high, positions (a list).
select l.position, l.subject_id::varchar as subject_id, s.example_id::varchar as example_id, s.content
from subject_lists l
join subjects s using (subject_id)
where l.list_id = $list_id
  and l.position between $low and $high
  and l.position in (select unnest($positions::bigint[]))
order by l.position;
